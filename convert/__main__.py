"""Converts and checks SmolVLA checkpoints.

    python -m convert inspect DIR              components, parameters, dtypes, config, statistics
    python -m convert from-lerobot DIR OUT     LeRobot's layout -> Orbax
    python -m convert to-lerobot RUN OUT       an Orbax folder or a training run -> LeRobot's layout
    python -m convert to-plugin DIR OUT        a folder that LeRobot runs in JAX, through lerobot_policy_jaxreflow
    python -m convert doctor DIR --fix         what is wrong with a checkpoint, and repairs
    python -m convert push DIR USER/NAME       a policy to the hub, with a model card

DIR is a policy's folder or hub name, OUT a new folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tyro.conf import Positional

from jaxreflow.errors import CheckpointError
from jaxreflow.support.command_line import choose, command_doc, parse, run
from jaxreflow.support.installation import as_typed

from . import archive, plugin, run_export
from .doctor import examine
from .inspection import inspect_checkpoint
from .push import check_sound, describe_files
from .repair import repair
from .report import format_findings, format_inspection

Checkpoint = Annotated[str, tyro.conf.arg(metavar="DIR")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Out = Annotated[Path, tyro.conf.arg(metavar="OUT")]
_VLM_HELP = "Folder of the VLM's config and tokenizer (default: the checkpoint's)."
_REVISION_HELP = "Of a policy from the hub: a commit, tag or branch (default: main)."
Revision = Annotated[str | None, tyro.conf.arg(metavar="REVISION", help=_REVISION_HELP, help_behavior_hint="")]
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
VLMDir = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help=_VLM_HELP, help_behavior_hint="")]


def inspect(
    checkpoint: Positional[Checkpoint],
    revision: Revision = None,
    vlm: VLMDir = None,
    json: Switch = False,
    shapes: Switch = False,
) -> int:
    """Shows what a checkpoint holds; reads no weights.

        python -m convert inspect DIR

    Args:
        checkpoint: A policy in LeRobot's layout: folder or hub name.
        json: Print JSON.
        shapes: List all tensors, not only the largest.
    """
    found = inspect_checkpoint(checkpoint, revision=revision, vlm=vlm)
    print(_dumps(dataclasses.asdict(found)) if json else as_typed(format_inspection(found, every_shape=shapes)))
    return 0


def from_lerobot(
    checkpoint: Positional[Checkpoint], out: Positional[Out], revision: Revision = None, vlm: VLMDir = None
) -> int:
    """Converts a checkpoint to an Orbax tree, with all that is needed to go back.

        python -m convert from-lerobot DIR OUT

    Args:
        checkpoint: A policy in LeRobot's layout: folder or hub name.
        out: New folder.
    """
    pickles = archive.from_lerobot(checkpoint, out, revision=revision, vlm=vlm)
    if pickles:
        print(f"left out, as pickles are never read: {', '.join(path.name for path in pickles)}")
    back = as_typed(f"`python -m convert to-lerobot {out} NEW`")
    print(f"{out}: parameters in {archive.PARAMS}/, an Orbax checkpoint; back by {back}")
    return 0


def to_lerobot(
    run: Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]],
    out: Positional[Out],
    step: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    ema: Switch = False,
    teacher: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None,
    teacher_revision: Revision = None,
    vlm: VLMDir = None,
) -> int:
    """Writes a checkpoint that LeRobot loads.

        python -m convert to-lerobot RUN OUT --ema

    Args:
        run: What `from-lerobot` made, or a training run's folder.
        out: New folder.
        step: Of a run, the checkpoint (default: the last).
        ema: Of a run, the averaged weights instead of the raw ones.
        teacher: Of a run, the policy it started from, if that is no longer where it was.
    """
    if archive.is_archive(run):
        if step is not None or ema or any(value is not None for value in (teacher, teacher_revision, vlm)):
            raise CheckpointError(
                f"{run} is no training run: --step, --ema, --teacher, --teacher-revision and --vlm have no meaning there"
            )
        same = archive.to_lerobot(run, out)
        verdict = "byte for byte the source's" if same else "not the source's: values were changed in between"
        print(f"{out}: model.safetensors is {verdict}")
    elif run_export.is_run(run):
        found = run_export.export_run(
            run, out, step=step, ema=ema, teacher=teacher, teacher_revision=teacher_revision, vlm=vlm
        )
        print(f"{out}: {'averaged' if ema else 'raw'} weights of update {found}")
    else:
        raise CheckpointError(f"{run}: neither a folder of `convert from-lerobot` nor a training run (RUN/checkpoints)")
    return 0


def to_plugin(checkpoint: Positional[Checkpoint], out: Positional[Out], revision: Revision = None) -> int:
    """Makes a folder that LeRobot's commands run in JAX, through the plugin lerobot_policy_jaxreflow.

        python -m convert to-plugin DIR OUT

    Args:
        checkpoint: A policy in LeRobot's layout: folder or hub name.
        out: New folder. Its weights are links to DIR's where the file system can.
    """
    plugin.to_plugin(checkpoint, out, revision=revision)
    print(f"{out}: run it with `lerobot-eval --policy.path={out} ...` where lerobot_policy_jaxreflow is installed")
    return 0


def doctor(
    checkpoint: Positional[Folder],
    fix: Switch = False,
    measure: Switch = False,
    vlm: VLMDir = None,
    json: Switch = False,
) -> int:
    """Lists what is wrong with a checkpoint; 1 if anything is.

        python -m convert doctor DIR --fix

    Args:
        checkpoint: A policy in LeRobot's layout: a folder.
        fix: Repair config.json, tensor names and dtypes, and missing processor files; originals are kept as *.bak.
        measure: Also for large policies, compare the actions under both numberings of vision positions.
        json: Print JSON.
    """
    done = repair(checkpoint, vlm=vlm) if fix else []
    findings = examine(checkpoint, vlm=vlm, measure=True if measure else None)
    if json:
        print(_dumps({"repaired": done, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        print(as_typed(format_findings(checkpoint, findings, done)))
    return int(any(finding.severity != "note" for finding in findings))


def push(
    checkpoint: Positional[Checkpoint],
    repo: Positional[Annotated[str, tyro.conf.arg(metavar="USER/NAME")]],
    private: Switch = False,
    revision: Annotated[str | None, tyro.conf.arg(metavar="BRANCH", help_behavior_hint="")] = None,
    message: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None,
    license: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None,
    dry_run: Annotated[Path | None, tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = None,
    force: Switch = False,
) -> int:
    """Publishes a policy on the hub in one commit, with a model card and without paths of this machine.

        python -m convert push RUN/checkpoints/last/pretrained_model USER/NAME

    Args:
        checkpoint: A policy in LeRobot's layout: a folder, which may be gs:// or s3://.
        repo: The repository, made if it is not there. Files of an older policy there are replaced or removed.
        private: The repository is private; one that is there and public is refused.
        revision: Branch, made from main if it is not there (default: main).
        message: Of the commit.
        license: For the card, as the hub names it, such as apache-2.0 (default: what the policy's config.json says).
        dry_run: Write what would be uploaded into this new folder instead, to look at, edit and push from there.
        force: Publish also what `convert doctor` finds errors in.
    """
    # What a card is made from is the whole evaluation, which no other command needs.
    from jaxreflow.publish import publication

    directory = publication.open_folder(checkpoint)
    check_sound(directory, force=force)
    if dry_run is not None:
        files = publication.prepare(directory, repo, license=license)
        publication.write(files, dry_run)
        print(as_typed(describe_files(dry_run)))
        return 0
    url = publication.publish(directory, repo, private=private, branch=revision, message=message, license=license)
    print(f"pushed: {url}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "inspect": inspect,
    "from-lerobot": from_lerobot,
    "to-lerobot": to_lerobot,
    "to-plugin": to_plugin,
    "doctor": doctor,
    "push": push,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if all is well, 1 after an error or findings, 2 for wrong usage."""
    # Conversions need no accelerator, and must not take one from a running job.
    if not jax.config.values.get("jax_platforms"):
        jax.config.update("jax_platforms", "cpu")
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(as_typed(f"warning: {message}"), file=sys.stderr)
        return run(_main, argv)


def _main(args: list[str]) -> int:
    abouts = {name: command_doc(command) for name, command in COMMANDS.items()}
    sentences = {name: about.split("\n\n")[0] for name, about in abouts.items()}
    name, rest = choose(args, sentences, prog="python -m convert", about=__doc__ or "")
    return parse(COMMANDS[name], rest, prog=f"python -m convert {name}", about=abouts[name])


def _dumps(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str)


if __name__ == "__main__":
    sys.exit(main())
