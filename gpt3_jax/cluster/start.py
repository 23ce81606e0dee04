"""Joins the other processes of a run, and leaves them.

The only file that reads a cluster's environment variables. JAX detects the cluster and its coordinator
(``jax.distributed.initialize()``); this file decides whether to call it and with which GPUs.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from gpt3_jax.cluster import compilation_cache, signals
from gpt3_jax.config import DistributedConfig
from gpt3_jax.errors import RunError, UserError

HEARTBEAT_TIMEOUT_S = 60
"""Silence after which a process counts as dead. JAX's default of 100 s leaves a whole pod idle for that long. A busy
process still answers, because a separate thread sends heartbeats."""

START_TIMEOUT_S = 300
"""How long processes wait for one another at the start. Nodes boot and pull images at different speeds."""

_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def start(config: DistributedConfig) -> None:
    """Joins the other processes of this run, if there are any. Call before anything touches a device.

    Does nothing with mode ``off``, when already started, or, with mode ``auto``, when no cluster is found.
    SIGTERM and Ctrl-C also end a process that waits here, if `signals.install` was called.

    Raises UserError when the cluster is there but this process was not started as part of it, RunError when the
    processes do not find one another.
    """
    if config.mode == "off" or jax.distributed.is_initialized():
        return
    if config.mode == "auto":
        cluster = recognise(os.environ)
        if cluster is None:
            return
    try:
        if config.mode == "manual":
            _require_reachable(config)
        # Without it, JAX refuses collectives between CPU processes. It must be set before the backend starts.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if config.mode == "manual":
            jax.distributed.initialize(
                coordinator_address=config.coordinator,
                num_processes=config.processes,
                process_id=config.process_id,
                cluster_detection_method="deactivate",
                initialization_timeout=START_TIMEOUT_S,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
        else:
            jax.distributed.initialize(
                local_device_ids=local_gpus(os.environ),
                initialization_timeout=START_TIMEOUT_S,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
    except (RuntimeError, ValueError, TypeError, OSError, LookupError, ImportError) as error:
        if config.mode == "manual":
            where = f"process {config.process_id} of {config.processes}, coordinator {config.coordinator}"
        else:
            where = f"cluster found: {cluster}; set distributed.mode to manual, or to off for one process"
        raise RunError(f"the processes did not find one another ({where}): {_one_line(error)}") from error
    signals.keep_sigterm()
    compilation_cache.suspend()


def recognise(env: Mapping[str, str]) -> str | None:
    """Name of the cluster that JAX would join in this environment, or None for a single process.

    Called before ``jax.distributed.initialize()``, which fails in the same way without a cluster and in a broken one.
    Raises UserError for a job of several tasks that was started without its launcher.
    """
    if "OMPI_COMM_WORLD_SIZE" in env:
        return "Open MPI" if int(env["OMPI_COMM_WORLD_SIZE"]) > 1 else None
    if all(name in env for name in _SLURM_STEP):
        return "SLURM" if int(env["SLURM_NTASKS"]) > 1 else None
    if "SLURM_JOB_ID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        raise UserError(
            f"SLURM job {env['SLURM_JOB_ID']} has {env['SLURM_NTASKS']} tasks but this process was not started by "
            "srun; put srun in front of the command, or set distributed.mode to off for one process"
        )
    if _tpu_hosts(env) > 1:
        return "Cloud TPU"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "this is an Indexed Job of Kubernetes, which JAX joins with the `kubernetes` package, not installed "
                "here; install jax[k8s], or set distributed.mode to manual (or to off for one process)"
            )
        return "Kubernetes"
    if _on_gce_tpu(env):
        return "Cloud TPU"
    if "JAX_COORDINATOR_ADDRESS" in env:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {env['JAX_COORDINATOR_ADDRESS']!r} but no cluster is found that numbers the "
            "processes; set distributed.mode to manual with coordinator, processes and process_id, or to off"
        )
    return None


def local_gpus(env: Mapping[str, str]) -> list[int] | None:
    """Indices of the GPUs that this process uses; None leaves the choice to JAX.

    Under SLURM and Open MPI, JAX gives each process the one GPU whose number is its local rank: with one task on a node
    of eight GPUs, seven stay idle without a message. Here the tasks of a node share its visible GPUs evenly.
    Raises UserError if the GPUs do not divide evenly.
    """
    if "JAX_LOCAL_DEVICE_IDS" in env:
        return None  # the user's own choice, which JAX reads
    if "OMPI_COMM_WORLD_LOCAL_RANK" in env:
        rank, tasks = int(env["OMPI_COMM_WORLD_LOCAL_RANK"]), int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    elif "SLURM_LOCALID" in env:
        rank, tasks = int(env["SLURM_LOCALID"]), _slurm_tasks_here(env)
    else:
        return None
    visible = _visible_gpus(env)
    if visible == 0:
        return None
    on_node = int(env.get("SLURM_GPUS_ON_NODE", str(visible)))
    bound = "SLURM_GPUS_PER_TASK" in env or visible < on_node  # SLURM then shows each task only its own GPUs
    if bound or tasks == 1:
        return list(range(visible))
    if visible % tasks:
        raise UserError(
            f"{tasks} processes on this node share {visible} GPUs, which do not divide evenly; "
            "start as many processes as GPUs, or one, or set JAX_LOCAL_DEVICE_IDS"
        )
    share = visible // tasks
    return list(range(rank * share, (rank + 1) * share))


def shutdown() -> None:
    """Disconnects from the other processes in good order. Does nothing in a single-process run.

    Raises RunError if the other processes are gone. Then exit with `leave_now`, which does not wait for them.
    """
    if not jax.distributed.is_initialized():
        return
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        raise RunError(f"the processes did not end together: {_one_line(error)}") from error


def _require_reachable(config: DistributedConfig) -> None:
    """Raises OSError if the coordinator's port is taken (on process 0) or does not answer in time (on the others).

    JAX (0.10 to 0.12) does not raise in these cases: its C++ code crashes the process with a stack dump.
    """
    host, _, port = config.coordinator.rpartition(":")
    if config.process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise OSError(f"port {port} on this machine: {error.strerror}") from error
        return
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=START_TIMEOUT_S).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise OSError(f"no answer within {START_TIMEOUT_S} s: {error.strerror or error}") from error
        time.sleep(0.5)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _tpu_hosts(env: Mapping[str, str]) -> int:
    """Number of hosts of the TPU slices according to GKE's variables; 1 without them."""
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if "TPU_PROCESS_ADDRESSES_PATH" in env:
        try:
            hosts = Path(env["TPU_PROCESS_ADDRESSES_PATH"]).read_text()
        except OSError as error:
            raise UserError(
                f"TPU_PROCESS_ADDRESSES_PATH is {env['TPU_PROCESS_ADDRESSES_PATH']!r}, which cannot be read: "
                f"{error.strerror}; unset it or set distributed.mode to off"
            ) from error
    return max(1, len([host for host in hosts.split(",") if host.strip()])) * int(env.get("MEGASCALE_NUM_SLICES", "1"))


def _on_gce_tpu(env: Mapping[str, str]) -> bool:
    """Whether this is a Cloud TPU VM outside GKE, where only the metadata server knows the hosts.

    A TPU VM of one host is started as a cluster of one, which also enables the preemption notice.
    """
    platforms = getattr(jax.config, "jax_platforms", None) or ""
    if "TPU_SKIP_MDS_QUERY" in env or (platforms and "tpu" not in platforms.split(",")):
        return False
    chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return chips and importlib.util.find_spec("libtpu") is not None


def _slurm_tasks_here(env: Mapping[str, str]) -> int:
    """Number of tasks of this job step on this node, from a list such as ``2(x3),1``: counts per node, in node
    order."""
    counts: list[int] = []
    for item in env.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = item.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[min(int(env.get("SLURM_NODEID", "0")), len(counts) - 1)]


def _visible_gpus(env: Mapping[str, str]) -> int:
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in env:
            return len([gpu for gpu in env[name].split(",") if gpu.strip()])
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))
