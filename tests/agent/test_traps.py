"""Every trap that another meter fell into, and the one test here that is named for it.

Two of them had no test of their own; they stand below the table.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from joulegram_agent.counters import Accumulator
from joulegram_pipeline.energy import Domain, DomainKind, Gap
from simulators.agent_days import Days
from simulators.powercap import PowercapTree

TESTS = Path(__file__).parent.parent

J = 1_000_000
S = 1_000_000_000

BY_ID = {
    "D-01": ("agent/test_agent_counters", "test_wrap_is_counted_to_the_microjoule"),
    "D-02": ("agent/test_agent_sampler", "test_one_of_two_packages_wraps"),
    "D-03": ("agent/test_agent_powercap", "test_measured_set_is_packages_and_dram"),
    "D-04": ("agent/test_agent_powercap", "test_psys_and_mmio_are_left_out"),
    "D-05": ("agent/test_agent_sampler", "test_vanished_domain_stays_named"),
    "D-06": ("agent/test_agent_powercap", "test_refused_zones_are_permission_denied"),
    "D-07": ("agent/test_agent_powercap", "test_sockets_are_known_by_name_not_by_number"),
    "D-08": ("agent/test_agent_sampler", "test_reset_counter_is_a_gap_and_never_negative"),
    "D-09": ("agent/test_nvml_ticks", "test_ticks_hold_what_the_boards_spent"),
    "D-10": ("agent/test_agent_sampler", "test_source_without_energy_has_a_gap_and_no_joules"),
    "D-11": ("processor/test_attribution", "test_energy_is_conserved_in_any_grouping"),
    "D-12": ("agent/test_agent_model", "test_idle_and_busy_watts"),
    "D-13": ("agent/test_traps", "test_power_that_no_package_draws_is_no_energy"),
    "D-45": ("agent/test_agent_counters", "test_no_mask_of_32_bits"),
    "D-46": ("agent/test_agent_sampler", "test_800_watts_at_10_hz_are_all_reported"),
    "D-47": ("agent/test_agent_msr", "test_one_cpu_of_each_package"),
    "D-48": ("agent/test_agent_powercap", "test_measured_set_is_packages_and_dram"),
    "D-49": ("agent/test_agent_counters", "test_long_silence_is_ambiguous_even_when_the_counter_rose"),
    "D-50": ("agent/test_agent_msr", "test_processors_that_are_not_known_are_not_read"),
}
"""The bugs of earlier attempts that concern readers and counters; the test's docstring names the id."""

BY_WHAT_HAPPENED = {
    # energy.md 3.8, what was verified in others.
    "a failed read is taken for a wrap: 40 J become 262 183 J": (
        "agent/test_traps",
        "test_a_read_that_fails_is_no_wrap",
    ),
    "after a wrap a reading is -262 kJ": ("agent/test_agent_laws", "test_what_is_told_is_true_whatever_befalls"),
    "each wrap is a unit short": ("agent/test_agent_counters", "test_wrap_is_counted_to_the_microjoule"),
    "the interval of a wrap is lost": ("agent/test_agent_sampler", "test_800_watts_at_10_hz_are_all_reported"),
    "microjoules are masked to 32 bits": ("agent/test_agent_counters", "test_no_mask_of_32_bits"),
    "symlinks are not followed, and no zone is found": (
        "agent/test_agent_powercap",
        "test_sockets_are_known_by_name_not_by_number",
    ),
    "the server's keys are not the client's": (
        "agent/test_agent_socket",
        "test_protocol_page_examples_are_what_the_agent_says",
    ),
    "zone numbers are hard-coded": ("agent/test_agent_powercap", "test_sockets_are_known_by_name_not_by_number"),
    "a constant is a thousand times its unit": ("pipeline/test_units", "test_projections_agree_with_exact_fractions"),
    # energy.md 3.1 and 3.2, powercap.
    "mirrored dies double a package": ("agent/test_agent_powercap", "test_mirrored_dies_count_once"),
    "mmio shows a package twice": ("agent/test_agent_powercap", "test_psys_and_mmio_are_left_out"),
    "AMD's core zone is one core's": ("agent/test_agent_powercap", "test_amd_tree_is_read"),
    "the guard runs on falls alone": (
        "agent/test_agent_counters",
        "test_long_silence_is_ambiguous_even_when_the_counter_rose",
    ),
    "EINVAL or ENODATA ends the reader": ("agent/test_agent_powercap", "test_read_errors_are_gaps"),
    "psys is added to its packages": ("agent/test_sensors", "test_no_sensor_enters_a_tick"),
    "/sys is masked in a container": ("agent/test_agent_doctor", "test_what_it_says_to_do_in_a_container_mends_it"),
    "psys in whole joules": ("agent/test_traps_rapl", "test_psys_in_whole_joules_is_counted"),
    "an older kernel's range": ("agent/test_traps_rapl", "test_each_kernel_wraps_at_its_own_range"),
    "a unit in whole nanojoules": ("agent/test_traps_rapl", "test_what_powercap_loses_by_its_unit_is_said"),
    # energy.md 3.3 and 3.4, MSR and perf.
    "TPMI is another driver": ("agent/test_traps_rapl", "test_tpmi_zones_are_read_like_any"),
    "lock-down refuses each read": ("agent/test_traps_rapl", "test_a_kernel_that_is_locked_down_is_a_permission"),
    "lock-down comes later": ("agent/test_traps_rapl", "test_lock_down_while_reading_is_a_gap"),
    "a PMU of cores beside the packages'": ("agent/test_traps_rapl", "test_power_core_is_not_added_to_packages"),
    "a register is read on every CPU": ("agent/test_agent_msr", "test_one_cpu_of_each_package"),
    "a server's DRAM has another unit": ("agent/test_agent_msr_units", "test_units"),
    "a hypervisor answers 0": ("agent/test_agent_msr", "test_registers_of_nothing_are_no_measurement"),
    "a count that stands still is 0 W": ("agent/test_agent_perf", "test_a_counter_that_no_longer_counts_is_a_gap"),
    "amd_energy calls its NUMA nodes sockets": (
        "agent/test_hwmon_energy",
        "test_a_node_that_mirrors_a_socket_is_not_counted",
    ),
    # energy.md 3.5, what may be seen.
    "the processor blurs short windows": ("agent/test_energy_filter", "test_what_can_be_read_is_said"),
    "energy finer than a second is shown": (
        "agent/test_agent_sampler",
        "test_nothing_finer_than_a_second_is_published",
    ),
    "a socket that everybody may read": ("agent/test_agent_socket", "test_socket_mode_is_0660"),
    # energy.md 3.6, who may read.
    "root without capabilities is refused": (
        "agent/test_traps_rapl",
        "test_root_without_a_capability_reads_its_own_files",
    ),
    "a capability that is in no effect": (
        "agent/test_traps_rapl",
        "test_a_capability_in_the_bounding_set_alone_reads_nothing",
    ),
    # energy.md 3.7, NVML.
    "CUDA_VISIBLE_DEVICES hides a board": (
        "agent/test_nvml",
        "test_every_board_is_read_whatever_is_visible_to_cuda",
    ),
    "a container's first board is the host's second": (
        "agent/test_nvml",
        "test_a_board_that_a_runtime_passes_alone_keeps_its_id",
    ),
    "a counter that jumps": ("agent/test_nvml_ticks", "test_a_counter_that_jumps_is_a_gap"),
    "a repeated counter is 0 W": ("agent/test_nvml_ticks", "test_a_counter_that_stands_still_is_no_zero_watts"),
    "a driver loaded anew is a wrap of 2^64": ("agent/test_nvml_ticks", "test_a_counter_that_falls_is_a_reset"),
    "an old board is 0 W": ("agent/test_nvml_ticks", "test_an_old_board_has_its_power_added_up"),
    "MIG has no samples of processes": ("agent/test_nvml_processes", "test_an_idle_board_is_not_an_unknown_one"),
    "a sample that was never filled": ("agent/test_nvml_processes", "test_samples_that_cannot_be_are_left_out"),
    # What the machine does meanwhile.
    "a sleep sets the counters to 0": (
        "agent/test_agent_suspend",
        "test_counters_that_began_anew_in_a_sleep_are_no_energy",
    ),
    "a restart forgets what was counted": ("agent/test_agent_state", "test_counts_go_on_and_the_gap_is_quantified"),
}


def docstring(file: str, name: str) -> str | None:
    """The docstring of a test; None where there is no such test."""
    tree = ast.parse((TESTS / f"{file}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node)
    return None


@pytest.mark.parametrize("trap", BY_ID)
def test_a_bug_of_before_has_its_test(trap: str) -> None:
    """The test is there, and says in its docstring which bug it keeps out."""
    assert trap in (docstring(*BY_ID[trap]) or "")


@pytest.mark.parametrize("trap", BY_WHAT_HAPPENED)
def test_a_trap_has_its_test(trap: str) -> None:
    """The test is there."""
    assert docstring(*BY_WHAT_HAPPENED[trap])


def test_a_read_that_fails_is_no_wrap(tmp_path: Path) -> None:
    """energy.md 3.8: 40 J, then reads of nothing and of garbage, then 40 J: 80 J in all, never 262 183 J."""
    node = Days(PowercapTree(tmp_path / "sys", dram=False, core=False, start_uj=40 * J), tmp_path)
    node.run(1, {"package-0": 40}, millis=100)
    for text in (b"", b"-1\n", b"N/A\n"):
        node.tree.garble("package-0", text)
        node.clock.advance(S // 10)
        node.sample()
    node.run(2, {"package-0": 20}, millis=100)
    node.run(0.7, {}, millis=100)
    assert node.counted("package-0") == node.tree.truth_uj["package-0"] == 80 * J
    assert node.sampler.totals.energy_uj == {"package-0": 80 * J}


def test_power_that_no_package_draws_is_no_energy() -> None:
    """D-13: 55 MJ in 312 s would be 176 kW: a rise above 2 kW is a reset of the counter, and a gap."""
    accumulator = Accumulator(Domain("package-0", DomainKind.CPU, 2**60))
    accumulator.offer(0, 0)
    accumulator.open()
    accumulator.offer(55_000_000 * J, 312 * S)
    assert accumulator.close() == Gap("package-0", "counter_reset")
    assert (accumulator.placed_uj, accumulator.unplaced_uj) == (0, 0)
