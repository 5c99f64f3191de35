"""Training of MambaScope and plain ViM (section 4.3): data set, losses, schedule, loop, report, command."""
