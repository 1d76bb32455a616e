"""From a config to a trained network in a folder: the run, its loop, its tasks and its checkpoints."""
