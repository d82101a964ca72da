"""Policies on the hub: model cards and uploads. Only what leaves the machine belongs here."""
