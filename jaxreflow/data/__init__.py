"""Robot data in: LeRobotDataset readers, camera matching, and the Grain pipeline."""
