"""How far a student is from its teacher, in numbers that a robot's behaviour depends on; `jaxreflow.evaluate` is the command."""
