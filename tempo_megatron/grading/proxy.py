"""Proxies of the environment that requests to the judge go through."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_SCHEMES = ("http", "https", "all")


def route(url: str) -> str:
    """The variable of the proxy that requests to this address go through, with its value; empty where there is none."""
    address = urlsplit(url)
    if proxy_bypass(address.netloc):
        return ""
    return _setting(address.scheme) or _setting("all")


def proxy_problems(url: str) -> list[str]:
    """Why no client can be made with the proxies of the environment, a line; empty where one can. httpx looks at all of
    them, whatever `no_proxy` says."""
    settings = [setting for setting in map(_setting, _SCHEMES) if setting]
    if not settings or not url:
        return []
    import httpx  # seconds of imports where no judge is asked

    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:
        reason = str(error).partition(". ")[0]
        return [f"grading.judge_url: no requests with {', '.join(settings)} in the environment ({reason}): unset it"]
    return []


def _setting(scheme: str) -> str:
    """The variable of a scheme's proxy and its value, NAME=VALUE without a password; empty where there is none."""
    value = getproxies().get(scheme)
    if not value:
        return ""
    name = f"{scheme}_proxy"
    credentials, mark, host = value.rpartition("@")
    shown = f"{credentials.partition('//')[0]}//{host}" if mark else value
    return f"{name if os.environ.get(name) == value else name.upper()}={shown}"
