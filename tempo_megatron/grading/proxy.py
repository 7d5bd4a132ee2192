"""Finds the environment's proxy for requests to the judge model."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_SCHEMES = ("http", "https", "all")


def proxy_for(url: str) -> str:
    """Returns the proxy for requests to this address as NAME=VALUE of its variable; "" if there is none."""
    address = urlsplit(url)
    if proxy_bypass(address.netloc):
        return ""
    return _setting(address.scheme) or _setting("all")


def proxy_problems(url: str) -> list[str]:
    """Returns why httpx rejects the environment's proxies, as one line; an empty list if it accepts them.

    httpx checks all proxies, even those that `no_proxy` excludes.
    """
    settings = [setting for setting in map(_setting, _SCHEMES) if setting]
    if not settings or not url:
        return []
    import httpx  # takes seconds, and runs without a judge do not need it

    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:
        reason = str(error).partition(". ")[0]
        return [f"grading.judge_url: no requests with {', '.join(settings)} in the environment ({reason}): unset it"]
    return []


def _setting(scheme: str) -> str:
    """Returns a scheme's proxy as NAME=VALUE of its variable, without credentials; "" if there is none."""
    value = getproxies().get(scheme)
    if not value:
        return ""
    name = f"{scheme}_proxy"
    credentials, separator, host = value.rpartition("@")
    public_value = f"{credentials.partition('//')[0]}//{host}" if separator else value
    return f"{name if os.environ.get(name) == value else name.upper()}={public_value}"
