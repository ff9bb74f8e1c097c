"""Where pods get their code and their rows from: images, and the release store."""

from __future__ import annotations

from collections.abc import Iterator

from erless.deploy.cluster.checks.examination import Examination, Finding
from erless.deploy.image.reference import parse_reference
from erless.errors import ErlessError
from erless.specs.functions import FunctionKind

__all__ = ["check_images", "check_store"]


def check_images(examination: Examination) -> Iterator[Finding]:
    """Every image that the release takes is in its registry."""
    from erless.deploy.image.registry import Registry

    kinds: list[FunctionKind] = ["gateway", "sparse"]
    for kind in kinds:
        try:
            image = examination.settings.image(kind)
            reference = parse_reference(image)
            Registry(reference).manifest(reference.version)
        except ErlessError as error:
            yield Finding("fail", f"image {kind}", str(error), "erless image push")
        else:
            yield Finding("pass", f"image {kind}", image)


def check_store(examination: Examination) -> Iterator[Finding]:
    """The store can be read from here and holds a release; pods have credentials for it."""
    from erless.specs.stored import find_release
    from erless.storage.stores import open_store

    store = examination.store
    if store is None:
        return
    try:
        release = find_release(open_store(store, endpoint_url=examination.endpoint_url), "")
    except ErlessError as error:
        yield Finding("fail", "store", str(error), "erless pack --store …")
    else:
        yield Finding("pass", "store", f"{store}, newest release {release.digest[:12]}")
    if store.startswith("s3://"):
        options = examination.settings.options
        how = options.role_arn or options.credentials_secret
        fact = how or "neither role_arn nor credentials_secret: pod identity has to give them"
        yield Finding("pass" if how else "warn", "store credentials of pods", fact)
