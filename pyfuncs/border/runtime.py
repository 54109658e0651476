"""What PL/Python runs on: eo.runtime."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

from pgearth import pyfuncs
from pgearth.pyfuncs import queries
from pgearth.pyfuncs.border.codes import packed_file
from pgearth.pyfuncs.border.encoding import encoder_socket
from pgearth.pyfuncs.border.session import Session, answer
from pgearth.pyfuncs.errors import PgearthError


@partial(answer, any_version=True)
def runtime(session: Session) -> str:
    """Versions of what PL/Python runs on, and how the encoder process is, as JSON text."""
    import platform
    from importlib.metadata import version  # takes a twentieth of a second

    return json.dumps(
        {
            "python": platform.python_version(),
            "prefix": sys.prefix,
            "numpy": version("numpy"),
            "torch": version("torch"),
            "package": pyfuncs.__version__,
            "encoder_process": encoder_process(session),
            "packed": unreadable_files(session),
        }
    )


def encoder_process(session: Session) -> dict[str, Any] | None:
    """What the encoder process says of itself; None where it does not run, `error` where it does not answer."""
    from pgearth.pyfuncs.service.client import NotServedError, status

    try:
        return status(encoder_socket(session), session.pause)
    except NotServedError:
        return None
    except PgearthError as error:
        return {"error": error.message}


def unreadable_files(session: Session) -> dict[str, str]:
    """Why files of packed codes or patches cannot be read, by version; those that can be are left out."""
    from pgearth.pyfuncs.tensor_file import map_tensors

    reasons = {}
    for row in session.rows(queries.PACKED_QUERY):
        try:
            for kind in ("codes", "patches"):
                map_tensors(packed_file(session, row["encoder_id"], row["version"], kind))
        except FileNotFoundError:
            reasons[row["version"]] = "the files are not on this server, as after a restore or on a standby"
        except OSError as error:
            reasons[row["version"]] = f"a file cannot be read ({error.strerror or error})"
    return reasons
