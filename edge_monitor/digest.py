"""Fingerprint of a health report: two monitors that said the same have the same digest."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np

from edge_monitor.reports import HealthReport


def report_digest(report: HealthReport) -> str:
    """Digest of everything a report holds, down to the last bit of every finite number.

    All NaN are alike, for their bits depend on the processor. A scalar that is not finite counts as
    unknown (None).

    Returns
    -------
    str
        16 hexadecimal digits (BLAKE2b, RFC 7693).
    """
    return hashlib.blake2b(_encode(report), digest_size=8).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        same = np.where(np.isnan(value), np.nan, value) if value.dtype.kind == "f" else value
        return [value.dtype.str, value.shape, same.tobytes()]
    raise TypeError(f"no digest of a {type(value).__name__}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
