"""Policies in simulation: environments, scripted experts, recording, and paired closed-loop evaluation."""
