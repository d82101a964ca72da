"""What a run writes down about itself: metrics, trackers, profiles, provenance and pictures."""
