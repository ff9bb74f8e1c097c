"""The next thing to try, for every kind of error: a command as it may be typed, where there is one.

What knows more than the kind adds a note to the error (`trying`, or `error.add_note`), and that
note stands. Where the command itself was at fault, the hint is the example of its help, or the
command as it was given with what it lacked.
"""

from __future__ import annotations

import errno
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from erless import errors

__all__ = ["FailedVerb", "again", "example", "hint_for", "trying"]

FULL = {errno.ENOSPC, errno.EDQUOT}
EXAMPLE = re.compile(r"Example:\s*`([^`]+)`")


@dataclass(frozen=True)
class FailedVerb:
    """A verb that failed: the text of its help, and what its options were."""

    help: str
    options: Mapping[str, object]


def hint_for(error: errors.ErlessError, failed: FailedVerb) -> str:
    """The next thing to try, by what failed; empty where there is nothing to say."""
    own = getattr(error, "__notes__", None)
    if own:
        return str(own[0])
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in FULL:
        return "free space or choose another --out; nothing half-written was kept"
    hint = next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), "")
    return hint if isinstance(hint, str) else hint(failed)


@contextmanager
def trying(
    hint: str, kind: type[errors.ErlessError] | tuple[type[errors.ErlessError], ...]
) -> Iterator[None]:
    """Errors of `kind` inside the block have `hint` as the next thing to try.

    The innermost block's stands: it knows best what was asked for.
    """
    try:
        yield
    except kind as error:
        error.add_note(hint)
        raise


def again(*words: str) -> str:
    """The command as it was given, with those of `words` added that it lacks."""
    given = sys.argv[1:]
    return f"`{shlex.join(['erless', *given, *(word for word in words if word not in given)])}`"


def example(help_: str) -> str:
    """The example in a command's help; empty where there is none."""
    found = EXAMPLE.search(help_)
    return f"`{' '.join(found[1].split())}`" if found else ""


def _example(failed: FailedVerb) -> str:
    return example(failed.help)


def _overwriting(failed: FailedVerb) -> str:
    """The command with --overwrite, where it has that option."""
    if "overwrite" in failed.options:
        return again("--overwrite")
    return "name another place, or move what is there"


def _inspecting(failed: FailedVerb) -> str:
    """What lists a checkpoint's tensors, where another command was given one."""
    checkpoint = failed.options.get("checkpoint")
    if checkpoint is None:
        return example(failed.help)
    inspect = shlex.join(["erless", "import", "inspect", str(checkpoint)])
    return f"`{inspect}` lists its tensors and proposes a command"


HINTS: dict[type[errors.ErlessError], str | Callable[[FailedVerb], str]] = {
    errors.OptionError: _example,
    errors.KubeconfigError: "set KUBECONFIG, or pass --kubeconfig and --context",
    errors.ConfigError: "`erless init` writes one, commented; `erless config schema` has all keys",
    errors.ExistsError: _overwriting,
    errors.ArtifactError: "check the path, or make the artifact again",
    errors.BucketError: (
        "check --endpoint-url (targets.knative.endpoint_url), the credentials and the region"
    ),
    errors.StorageError: "check the path and its permissions; nothing half-written was kept",
    errors.CheckpointError: _inspecting,
    errors.ModelError: "compare with `erless bundle show`",
    errors.QueryError: "compare the query with `erless bundle show`: tables, rows, dense features",
    errors.LogError: _example,
    errors.InfeasibleError: "relax the constraint named, or raise the limit beside it",
    errors.PlanError: _example,
    errors.TrafficError: "traffic is like step:50,150,50, or a table with columns t_s and qps",
    errors.LoadTestError: "`erless status` tells what answers; --host names another gateway, --ca "
    "FILE the authorities of its certificate",
    errors.StoreError: "`erless pack --store STORE` makes a release, `erless releases list` lists",
    errors.BaseImageError: (
        "--base names one that is reached from here: a mirror's python:3.X-slim-bookworm, or a "
        "registry's on 127.0.0.1; it needs this Python and libstdc++"
    ),
    errors.DependencyError: (
        "where a package index is reached, with this Python: `pip freeze --exclude erless > "
        "pins.txt`, `pip download --only-binary=:all: -d wheels -c pins.txt -r FILE` with the file "
        "named above; then here --wheels wheels, or --no-dependencies over a base that has them"
    ),
    errors.ImageError: _example,
    errors.InfraError: "run `terraform -chdir=DIR init` and `terraform -chdir=DIR apply` first",
    errors.NotDeployedError: "`erless deploy` first",
    errors.SeveralModelsError: "name one by --model",
    errors.UnreachableError: "set KUBECONFIG, or pass --kubeconfig and --context",
    errors.ForbiddenError: "`erless doctor` lists every permission that is missing",
    errors.OtherModelError: "--model with its own name deploys it beside what serves; "
    "--replace-model in its place",
    errors.ConflictError: "whoever is named is at work or owns it: let them end, or give it up",
    errors.ClusterError: "mend what is named and run it again: it goes on from there",
    errors.DeployError: "see `erless status` and `erless logs`",
    errors.UntrustedError: "--ca FILE names the authorities, --url the host of the certificate",
    errors.ServeError: "see `erless status`",
}
