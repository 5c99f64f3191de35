"""Videos and cameras: their frames one after another, and the video that a run leaves behind."""
