"""A training run: its settings, its folder and its loop. What only a running `train.py` needs belongs here."""
