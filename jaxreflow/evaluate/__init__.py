"""How far a student is from its teacher, in numbers that a robot's behaviour depends on. Measures and verdicts belong here."""
