"""Arguments that start several processes, RecBole's and torchrun's; nothing here imports torch."""

import os
import socket

from recbole_tema.errors import ConfigError

# Keys of RecBole's run functions -> their defaults there; group_offset is `offset` in a config.
LAUNCH = {
    "nproc": 1,
    "world_size": -1,
    "ip": "localhost",
    "port": None,  # RecBole's 5678 is as good as any that is free
    "group_offset": 0,
}
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch_keys(arguments: dict) -> dict:
    """Take the keys of several processes out of a command line's arguments, and check them.

    Returns:
        nproc, world_size, ip, port and offset; empty for one process.

    Raises:
        ConfigError: one is no number, or they contradict each other.
    """
    given = {key: arguments.pop(key) for key in LAUNCH if key in arguments}
    if "offset" in arguments:
        given["group_offset"] = arguments.pop("offset")
    found = {**LAUNCH, **given}
    for key in ("nproc", "world_size", "group_offset", "port"):
        if found[key] is None:
            continue
        try:
            found[key] = int(found[key])
        except ValueError:
            raise ConfigError(f"--{key} is '{found[key]}'; give a whole number") from None
    nproc, world, offset = found["nproc"], found["world_size"], found["group_offset"]
    for key, value, least in (("nproc", nproc, 1), ("group_offset", offset, 0)):
        if value < least:
            raise ConfigError(f"--{key} is {value}; give a whole number from {least}")
    if world != -1 and world < 1:
        raise ConfigError(f"--world_size is {world}; give the number of processes of all machines")
    world = nproc if world == -1 else world
    if offset + nproc > world:
        raise ConfigError(
            f"--world_size is {world}, but --group_offset {offset} and --nproc {nproc} make "
            f"{offset + nproc} processes; world_size counts those of all machines"
        )
    if world == 1:
        return {}
    if found["port"] is None:
        if world > nproc:
            raise ConfigError("--port is missing; all machines need the same one")
        found["port"] = _free_port()
    keys = {"nproc": nproc, "world_size": world, "offset": offset}
    return {**keys, "ip": str(found["ip"]), "port": found["port"]}


def torchrun_keys() -> dict:
    """The same keys and `local_rank` of a process that torchrun started; empty for another."""
    if not all(name in os.environ for name in TORCHRUN) or os.environ["WORLD_SIZE"] == "1":
        return {}
    values = {name: os.environ[name] for name in TORCHRUN}
    local = int(values["LOCAL_RANK"])
    return {
        "local_rank": local,
        "nproc": int(values["LOCAL_WORLD_SIZE"]),
        "world_size": int(values["WORLD_SIZE"]),
        "offset": int(values["RANK"]) - local,
        "ip": values["MASTER_ADDR"],
        "port": int(values["MASTER_PORT"]),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
