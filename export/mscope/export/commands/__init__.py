"""The subcommands of `mscope-export`, one file each: parse, call the library, print."""
