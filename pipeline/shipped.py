"""The TOML files that ship with us: sweeps, profiles, protocols; found after any kind of install."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lewm.spelling import nearest

PROFILE_KEYS = {"about", "base", "set", "env", "method", "estimate"}


def load_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        ValueError: unreadable, or a syntax error with its line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def package_folder() -> Path:
    """The installed `sweeps` folder: package data without Python."""
    import sweeps

    return next(Path(path) for path in sweeps.__path__ if (Path(path) / "profiles").is_dir())


def find_sweep(name: str) -> Path:
    """The TOML of a sweep: a path that ends in `.toml`, or the name of one that ships with us."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ValueError(f"no such sweep file: {name}")
        return Path(name)
    return _shipped(package_folder(), name, "sweep", hidden={"published", "paper"})


def load_profile(name: str) -> dict[str, Any]:
    """A profile's TOML, over that of its `base` where it names one."""
    return over(_profile_file(part) for part in profile_chain(name))


def profile_chain(name: str) -> list[str]:
    """A profile and those it is based on, the lowest first."""
    base = _profile_file(name).get("base")
    return [*(profile_chain(base) if base else []), name]


def _profile_file(name: str) -> dict[str, Any]:
    table = load_toml(_shipped(package_folder() / "profiles", name, "profile"))
    check_keys(table, PROFILE_KEYS, f"profile {name!r}")
    for env in table.get("env", {}):
        choice(env, env_names(), f"profile {name!r}: env")
    return table


def over(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables laid one over the other, tables within them too; of other values the last one's."""
    merged: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = over([merged[key], value]) if both else value
    return merged


def layers(profile: Mapping[str, Any], env: str, method: str) -> list[dict[str, Any]]:
    """A profile's settings for one environment and method, the more special later."""
    per_env = profile.get("env", {}).get(env, {})
    per_method = profile.get("method", {}).get(method, {})
    both = per_env.get("method", {}).get(method, {})
    return [table.get("set", {}) for table in (profile, per_env, per_method, both)]


def env_names() -> list[str]:
    """Environments with evaluation protocols: those that a sweep can name."""
    return sorted(path.stem for path in (package_folder() / "protocols").glob("*.toml"))


def load_protocols(env: str) -> dict[str, dict[str, Any]]:
    """The evaluation protocols of an environment, by name."""
    return load_toml(_shipped(package_folder() / "protocols", env, "protocols of environment"))


def load_published() -> list[dict[str, Any]]:
    """Published success rates: method, env, protocol, value, source; spread and n where they were given."""
    rows: list[dict[str, Any]] = load_toml(package_folder() / "published.toml")["success"]
    return rows


def load_programme() -> tuple[str, ...]:
    """The sweeps that test the publication's claims, in the order they run (`sweeps/paper.toml`)."""
    return tuple(load_toml(package_folder() / "paper.toml")["sweeps"])


def _shipped(folder: Path, name: str, what: str, hidden: Iterable[str] = ()) -> Path:
    known = {path.stem: path for path in folder.glob("*.toml") if path.stem not in hidden}
    return known[choice(name, known, what)]


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuses a table with a key that is not known.

    Raises:
        ValueError: names the key and the nearest known one.
    """
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def choice(name: Any, known: Iterable[str], where: str) -> str:
    """The name, if it is one of the known.

    Raises:
        ValueError: it is not; names the nearest and lists the known ones.
    """
    if name not in known:
        raise ValueError(
            f"{where}: unknown {name!r}{nearest(str(name), known)}; known: {', '.join(sorted(known))}"
        )
    return str(name)
