"""Robot data in and out: LeRobotDataset readers and writers, camera matching, caches, the Grain pipeline. Nothing here trains."""
