"""Conversion commands: inspect, from-lerobot, to-lerobot and doctor."""
