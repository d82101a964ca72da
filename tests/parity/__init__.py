"""Parity with the real LeRobot: checkpoints, an oracle, and the tests that compare jaxreflow with it."""
