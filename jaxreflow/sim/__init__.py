"""Policies in simulation: environments, experts, recording and paired closed-loop trials. What needs a simulator belongs here."""
