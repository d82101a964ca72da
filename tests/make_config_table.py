"""Prints docs/config.md from the one table of config fields.

python -m tests.make_config_table > docs/config.md
"""

from jaxreflow.policy.config_fields import POLICY_FIELDS

HEAD = """# What becomes of every field of `config.json`

Made by `python -m tests.make_config_table` from `jaxreflow.policy.config_fields.POLICY_FIELDS`.

- *honoured*: changes what jaxreflow computes, as it does in LeRobot
- *carried*: read by LeRobot only, written back as found
- *refused*: the value named is an error
- *legacy*: left behind by an old fork, accepted with a warning, never written

A field that is not listed is refused by name.

| field | | |
| --- | --- | --- |
"""


def config_table() -> str:
    """The document's text."""
    rows = [f"| `{name}` | {use} | {note} |" for name, (use, note) in POLICY_FIELDS.items()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(config_table(), end="")
