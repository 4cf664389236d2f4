"""A Hub id, a folder, or the name of a model in this package -> the folder that holds the model's files."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from ..errors import CheckpointError
from .folder import patterns

logger = logging.getLogger("qwen3np")

NEEDED_FILES = patterns()

# Models that come with this package, by name: training/ made them.
PACKAGED = {"qwen3np-tiny": Path(__file__).parent.parent / "models" / "qwen3np-tiny"}


def locate(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_folder: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the absolute path of a model's folder: the folder itself, or a snapshot in the Hub cache.

    A snapshot is downloaded if needed: only NEEDED_FILES, with a progress bar. `HF_HUB_OFFLINE=1`, `HF_HOME`
    and `HF_TOKEN` are honoured.

    Args:
        model: A Hub id, a folder, or a name in PACKAGED, which needs no network.
        revision: The branch, tag or commit of the Hub repository.
        cache_folder: The Hub cache. Default: that of HF_HOME.
        token: The Hub token for private models.
        local_files_only: Never download.

    Raises:
        CheckpointError: There is neither a folder nor a reachable or cached repository of that name.
    """
    if not str(model):
        raise CheckpointError("the model's name is empty; give a Hub id or a folder")
    try:
        folder = Path(model).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long for a path, a user without a home
        raise CheckpointError(f"{model}: no such folder ({error})") from error
    if is_folder:
        return folder.absolute()  # the process may go elsewhere, and save or pickle the model there
    if exists:
        raise CheckpointError(
            f"{folder}: is a file; give the folder that holds config.json and model.safetensors"
        )
    name = str(model)
    if name in PACKAGED and revision is None:
        return PACKAGED[name]
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name:
        raise CheckpointError(f"{name}: no such folder")

    from huggingface_hub import errors, snapshot_download  # 0.2 s, and not needed for a folder

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_folder,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=NEEDED_FILES,
            )
        ).absolute()
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"{name!r}: neither a folder nor a valid Hub id such as Qwen/Qwen3-Embedding-0.6B"
        ) from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name}: access to this Hub repository must be granted first; log in and pass token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no folder of this name here, and no such Hub repository (or a private one: pass token=)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the Hub repository has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        why = (
            "local_files_only=True or HF_HUB_OFFLINE forbids a download"
            if _offline(local_files_only)
            else ("the Hub cannot be reached")
        )
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{name}: no folder of this name here, not in the Hub cache{at} "
            f"({cache_folder or _cache()}), and {why}; "
            "download it once with a network, or give the path of a folder that holds the model's files; "
            f"to try things out, {', '.join(PACKAGED)} comes with the package"
        ) from error
    except (
        Exception
    ) as error:  # the HTTP client behind huggingface_hub, and so its errors, differs between versions
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _from_read_only_cache(name, error, revision, cache_folder)
        detail = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{name}: the download failed ({detail}); run the same command again, it goes on where it stopped"
        ) from error


def _from_read_only_cache(
    name: str, error: OSError, revision: str | None, cache_folder: str | Path | None
) -> Path:
    """Return the cached snapshot where the Hub has a newer one that cannot be stored."""
    cache = cache_folder or _cache()
    cure = "HF_HOME or cache_folder= (--cache-folder) names a cache that can be"
    try:
        folder = locate(name, revision=revision, cache_folder=cache_folder, local_files_only=True)
    except CheckpointError:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{name}: is not in the Hub cache{at}, and {cache} cannot be written ({error.strerror}); {cure}"
        ) from error
    logger.warning(
        "%s: the Hub has other files than the Hub cache %s, which cannot be written (%s); using those of the "
        "cache; %s",
        name, cache, error.strerror, cure,
    )  # fmt: skip
    return folder


def hub_id(folder: Path) -> str:
    """Return the Hub id of a snapshot's folder in a Hub cache, else "".

    Such a folder is .../models--Qwen--Qwen3-Embedding-0.6B/snapshots/<revision>.
    """
    parts = folder.parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return ""


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _offline(local_files_only: bool) -> bool:
    from huggingface_hub import constants

    return local_files_only or bool(constants.HF_HUB_OFFLINE)
