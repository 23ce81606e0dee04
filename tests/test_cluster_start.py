"""Process start-up: which cluster is recognised, which GPUs are taken, and two real processes on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from xla_flags import xla_flags

from gpt3_jax.cluster import agreement, start
from gpt3_jax.config import DistributedConfig
from gpt3_jax.errors import RunError, UserError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


@pytest.mark.parametrize(
    ("env", "cluster"),
    [
        ({}, None),
        (SLURM, "SLURM"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod, not an Indexed Job
    ],
)
def test_recognises_clusters_of_more_than_one_process(env: dict[str, str], cluster: str | None) -> None:
    assert start.recognise(env) == cluster


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, "8 tasks .* srun"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS is 'a:1'"),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/nonexistent/x"}, "/nonexistent/x"),
    ],
)
def test_half_a_cluster_is_an_error(env: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        start.recognise(env)


LAST_NODE_OF_THREE = {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
ONE_OF_TWO = {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, None),
        # one task on a node of eight: all of them, not the one that JAX would give it
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        # two tasks that see all eight: four each
        ({**ONE_OF_TWO, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_GPUS_ON_NODE": "8"}, [4, 5, 6, 7]),
        # two tasks to which SLURM shows four each, by number or because it was asked to
        ({**ONE_OF_TWO, "CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_GPUS_ON_NODE": "8"}, [0, 1, 2, 3]),
        ({**ONE_OF_TWO, "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, [0, 1]),
        ({**LAST_NODE_OF_THREE, "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({**OPEN_MPI, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [3]),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)  # fmt: skip
def test_gpus_are_shared_out_and_none_is_left_idle(env: dict[str, str], gpus: list[int] | None) -> None:
    assert start.local_gpus(env) == gpus


def test_gpus_that_do_not_divide_are_an_error() -> None:
    env = {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "3", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    with pytest.raises(UserError, match="3 processes on this node share 4 GPUs"):
        start.local_gpus(env)


def test_a_process_on_its_own_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "JAX_COORD"))]:
        monkeypatch.delenv(name)
    start.start(DistributedConfig())
    start.start(DistributedConfig(mode="off"))
    assert not jax.distributed.is_initialized()
    assert agreement.is_lead() and agreement.from_lead("ü") == "ü"
    assert agreement.everywhere(True) and not agreement.everywhere(False)
    start.shutdown()


TWO = """
    import sys, time
    from pathlib import Path
    port, with_checkpoints, rank, folder = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3]), Path(sys.argv[4])
    from gpt3_jax.config import DistributedConfig
    from gpt3_jax.cluster import agreement, start
    start.start(DistributedConfig(
        mode="manual", coordinator=f"127.0.0.1:{port}", processes=2, process_id=rank))
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
    from gpt3_jax.cluster.stopping import StopSignal
    from gpt3_jax.train.checkpoint.store import CheckpointStore

    assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 4, 8)
    assert agreement.is_lead() == (rank == 0)
    assert agreement.from_lead(f"grüße von {rank}") == "grüße von 0"
    assert agreement.everywhere(True) and not agreement.everywhere(rank == 0)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    whole = np.ones((1024, 64), np.float32)
    x = jax.make_array_from_callback((1024, 64), sharding, lambda i: whole[i])
    psum = lambda v: jax.lax.psum(v.sum(), "data")
    total = jax.jit(jax.shard_map(psum, mesh=mesh, in_specs=P("data"), out_specs=P()))
    assert float(total(x)) == 2**16

    if with_checkpoints:
        import logging
        said = []
        keep = logging.Handler()
        keep.emit = lambda record: said.append(record.getMessage())
        logging.getLogger("gpt3_jax").addHandler(keep)
        store = CheckpointStore(folder, keep_last=3, keep_every_tokens=0)
        for tokens in (1, 2, 3):
            store.save(tokens, tokens, {"x": x * tokens}, {"n": tokens}, wait=True)
        if rank == 0:  # one bit, and the data that only the other process reads
            largest = lambda where: max((f for f in where.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
            data = largest(folder / "tokens-2")
            bad = bytearray(data.read_bytes())
            bad[len(bad) // 2] ^= 1
            data.write_bytes(bad)
            largest(folder / "tokens-3" / "state" / "ocdbt.process_1").unlink()
        agreement.everywhere(True)
        store = CheckpointStore(folder, keep_last=3, keep_every_tokens=0)
        restored = store.restore({"x": jax.ShapeDtypeStruct((1024, 64), jnp.float32, sharding=sharding)})
        assert restored.record == {"n": 1} and float(total(restored.state["x"])) == 2**16
        assert len(said) == (3 if rank == 0 else 0), said
        store.save(2, 2, {"x": x}, {"n": 3}, wait=True)
        names = ["damaged-tokens-2", "damaged-tokens-3", "tokens-1", "tokens-2"]
        assert sorted(p.name for p in folder.iterdir()) == names

    with StopSignal() as stop:
        print("ready", flush=True)
        time.sleep(1)  # the signal comes before the first question, as it may while a resumed run compiles
        for step in range(100_000):
            if stop.requested():
                break
            float(total(x))
            time.sleep(0.02 * (1 + rank))
    print("stopped", step, flush=True)
    start.shutdown()
"""


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_two_processes_of_four_devices(tmp_path: Path, number: signal.Signals, rank: int) -> None:
    """A psum over both, a checkpoint of both with damage that both notice (once), and a stop that reaches both at one
    step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(4)}
    command = [sys.executable, "-c", textwrap.dedent(TWO), str(port), str(number == signal.SIGTERM)]
    both = [
        subprocess.Popen(
            [*command, str(r), str(tmp_path / "c")], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]

    def kill() -> None:
        for process in both:
            process.kill()

    watchdog = threading.Timer(120, kill)  # a deadlock must fail, not hang
    watchdog.start()
    try:
        for process in both:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert any(line == "ready\n" for line in lines), process.stderr.read() if process.stderr else ""
        both[rank].send_signal(number)
        outputs = [process.communicate(timeout=60) for process in both]
    finally:
        watchdog.cancel()
        for process in both:
            process.kill()
            process.wait()
    steps = [out.split() for out, _ in outputs]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert steps[0][-2:] == steps[1][-2:] and steps[0][-2] == "stopped", steps


def test_a_port_that_is_taken_or_silent_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX itself crashes the process in both cases."""
    monkeypatch.setattr(start, "START_TIMEOUT_S", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"  # bound, not listening: taken for one, silent for the other
        for rank, why in ((0, "in use"), (1, "no answer within 0 s")):
            config = DistributedConfig(mode="manual", coordinator=where, processes=2, process_id=rank)
            with pytest.raises(RunError, match=rf"process {rank} of 2, coordinator {where}.*{why}") as caught:
                start.start(config)
            assert "\n" not in str(caught.value)
