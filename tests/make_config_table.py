"""Prints docs/config.md from the one table of config fields.

python -m tests.make_config_table > docs/config.md
"""

from jaxreflow.policy.config_fields import POLICY_FIELDS

HEAD = """# What becomes of every field of `config.json`

LeRobot keeps the settings of a SmolVLA policy in `config.json`. This table says what jaxreflow does with each field:

- An *honoured* field changes what jaxreflow computes, as it does in LeRobot.
- A *carried* field is read by LeRobot only. jaxreflow writes it back as it was found.
- A *refused* field is an error if it has the value that the table names.
- A *legacy* field comes from an old fork. jaxreflow accepts it with a warning, and never writes it.

Any other field is an error that names the field.

`python -m tests.make_config_table` makes this page from `jaxreflow.policy.config_fields.POLICY_FIELDS`.

| field | use | note |
| --- | --- | --- |
"""


def config_table() -> str:
    """The document's text."""
    rows = [f"| `{name}` | {use} | {note} |" for name, (use, note) in POLICY_FIELDS.items()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(config_table(), end="")
