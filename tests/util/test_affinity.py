"""Devices next to the cores of ranks, on imitated nodes of LUMI-G, Frontier and Perlmutter.

The expected devices are those of the centres' documentation and of users' scripts, named in each test.
"""

from __future__ import annotations

import random
from itertools import permutations, product
from pathlib import Path

import pytest

from lsam_hpc.util.affinity import accelerators, device_indices, is_far, near_cores, spanning_chains

# Of each device: its PCI address and NUMA node.
MI250X = [("c1", 3), ("c6", 3), ("c9", 1), ("ce", 1), ("d1", 0), ("d6", 0), ("d9", 2), ("de", 2)]  # LUMI-G, Frontier
A100 = [("03", 3), ("41", 2), ("82", 1), ("c1", 0)]  # Perlmutter and Polaris: reversed


def tree(folder: Path, devices: list[tuple[str, int]], cores: int = 16, virtual: str = "") -> tuple[Path, list[str]]:
    """Write /sys of a node with that many cores in each NUMA node; return it and the addresses of its devices."""
    addresses = []
    for bus, node in devices:
        addresses.append(f"0000:{bus}:00.0")
        device = folder / "bus" / "pci" / "devices" / addresses[-1]
        device.mkdir(parents=True)
        first, thread = cores * node, cores * (node + 4)
        near = f"{first}-{first + cores - 1},{thread}-{thread + cores - 1}"
        (device / "local_cpulist").write_text((virtual or near) + "\n")
        (device / "numa_node").write_text(f"{node}\n")
        (device / "class").write_text("0x030200\n")
    return folder, addresses


def masks(*words: str) -> list[set[int]]:
    """Return the cores of each rank, as srun's --cpu-bind=mask_cpu gives them."""
    return [{core for core in range(128) if int(word, 16) >> core & 1} for word in words]


def test_lumi_with_the_masks_of_its_documentation(tmp_path: Path) -> None:
    """docs.lumi-supercomputer.eu, distribution-binding: with these masks rank i is next to device i."""
    sys, devices = tree(tmp_path, MI250X)
    words = ["fe000000000000", "fe00000000000000", "fe0000", "fe000000", "fe", "fe00", "fe00000000", "fe0000000000"]
    assert device_indices(masks(*words), [devices] * 8, sys) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_lumi_and_frontier_with_cores_in_order(tmp_path: Path) -> None:
    """docs.lumi-supercomputer.eu, distribution-binding: --gpu-bind=map:4,5,2,3,6,7,0,1 for ranks on cores in order."""
    sys, devices = tree(tmp_path, MI250X)
    cores = [set(range(8 * rank + 1, 8 * rank + 8)) for rank in range(8)]
    assert device_indices(cores, [devices] * 8, sys) == [4, 5, 2, 3, 6, 7, 0, 1]
    assert not any(is_far(own, devices[i], sys) for own, i in zip(cores, [4, 5, 2, 3, 6, 7, 0, 1], strict=True))
    assert is_far(cores[0], devices[0], sys)
    assert not is_far({15, 16}, devices[4], sys)  # one of its cores is near


def test_frontier_with_the_closest_device_visible(tmp_path: Path) -> None:
    """--gpus-per-task=1 --gpu-bind=closest: the device that the launcher shows is used."""
    sys, devices = tree(tmp_path, MI250X)
    cores = [set(range(8 * rank + 1, 8 * rank + 8)) for rank in range(8)]
    assert device_indices(cores, [[devices[i]] for i in (4, 5, 2, 3, 6, 7, 0, 1)], sys) == [0] * 8
    assert device_indices(cores, [[devices[i]] for i in range(8)], sys) == [0] * 8  # also if it is far


def test_perlmutter(tmp_path: Path) -> None:
    """WarpX's perlmutter_gpu.sbatch: CUDA_VISIBLE_DEVICES=$((3-SLURM_LOCALID)) with --cpu-bind=cores and -c 32."""
    sys, devices = tree(tmp_path, A100)
    cores = [{*range(16 * rank, 16 * rank + 16), *range(16 * rank + 64, 16 * rank + 80)} for rank in range(4)]
    assert device_indices(cores, [devices] * 4, sys) == [3, 2, 1, 0]


def test_polaris(tmp_path: Path) -> None:
    """docs.alcf.anl.gov/polaris/running-jobs/using-gpus: device 3 - rank, with --depth 8 --cpu-bind depth."""
    sys, devices = tree(tmp_path, A100, cores=8)
    cores = [set(range(8 * rank, 8 * rank + 8)) for rank in range(4)]
    assert device_indices(cores, [devices] * 4, sys) == [3, 2, 1, 0]


def test_ranks_on_one_numa_node_get_different_devices(tmp_path: Path) -> None:
    sys, devices = tree(tmp_path, A100)
    chosen = device_indices([set(range(8 * rank, 8 * rank + 8)) for rank in range(4)], [devices] * 4, sys)
    assert chosen == [3, 0, 2, 1]  # the first rank of each NUMA node has the near device


def test_without_a_binding_devices_are_taken_in_order(tmp_path: Path) -> None:
    sys, devices = tree(tmp_path, MI250X)
    assert device_indices([set(range(128))] * 8, [devices] * 8, sys) == list(range(8))
    assert device_indices([set(range(128))] * 10, [devices] * 10, sys) == [*range(8), 0, 1]
    cores = [{rank} for rank in range(8)]
    assert device_indices(cores, [devices] * 8, tmp_path / "no") == list(range(8))  # no /sys
    assert device_indices(cores, [[""] * 8] * 8, sys) == list(range(8))  # torch tells no addresses
    assert device_indices(cores, [[]] * 8, sys) == [0] * 8  # no devices
    machine, devices = tree(tmp_path / "virtual", MI250X, virtual="0-127")
    assert device_indices(cores, [devices] * 8, machine) == list(range(8))
    assert not is_far({1}, "", sys)


def test_ranks_share_devices_evenly_and_near(tmp_path: Path) -> None:
    sys, devices = tree(tmp_path, MI250X)
    cores = [set(range(4 * rank, 4 * rank + 4)) for rank in range(16)]
    chosen = device_indices(cores, [devices] * 16, sys)
    assert sorted(chosen) == sorted([*range(8)] * 2)
    assert not any(is_far(own, devices[i], sys) for own, i in zip(cores, chosen, strict=True))


def test_each_rank_has_a_device_of_its_own_for_any_binding(tmp_path: Path) -> None:
    sys, devices = tree(tmp_path, MI250X)
    draw = random.Random(1)
    for _ in range(200):
        cores = [set(draw.sample(range(128), draw.randint(1, 20))) for _ in range(8)]
        assert sorted(device_indices(cores, [devices] * 8, sys)) == list(range(8))
    one_node = [{1, 2}] * 4 + [{3, 4}] * 4
    assert sorted(device_indices(one_node, [devices] * 8, sys)) == list(range(8))


def test_the_tree_is_read(tmp_path: Path) -> None:
    sys, devices = tree(tmp_path, A100)
    assert near_cores(devices[0], sys) == {*range(48, 64), *range(112, 128)}
    bridge = sys / "bus" / "pci" / "devices" / "0000:00:00.0"
    bridge.mkdir()
    assert accelerators(sys) == devices
    (bridge / "class").write_text("0x060000\n")
    assert accelerators(sys) == devices
    assert accelerators(tmp_path / "no") == []


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 2), (6, 3)])
def test_chains_that_span_nodes_are_counted_if_another_order_avoids_it(ranks: int, parts: int) -> None:
    def spanning(hosts: tuple[str, ...]) -> int:
        chains = zip(*[iter(hosts)] * parts, strict=True)
        return sum(any(host != chain[0] for host in chain) for chain in chains)

    for hosts in product("abc", repeat=ranks):
        avoidable = any(spanning(order) == 0 for order in set(permutations(hosts)))
        assert spanning_chains(hosts, parts) == (spanning(hosts) if avoidable else 0), hosts
