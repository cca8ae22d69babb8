"""What the figures of compile_gate.py must not exceed, and how two tables of them differ."""

from tests.gates import hopper

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of a thread block, by sm version
Table = dict[str, dict[str, float]]  # figures by row


def over_limits(table: Table) -> list[str]:
    """What no version of the compiler may report."""
    complaints = []
    for row, figures in table.items():
        limit = SHARED_LIMIT[int(row.rpartition("sm_")[2])]
        if figures["spilled_bytes"]:
            complaints.append(f"{row}: {figures['spilled_bytes']} bytes of registers spilled per thread")
        if "gemm" in row and "fp32" not in row and not figures["matrix_products"]:
            complaints.append(f"{row}: no matrix instruction in the product")
        if figures["narrow_offsets"]:
            complaints.append(f"{row}: {figures['narrow_offsets']} offsets are multiplied in 32 bits")
        if figures["moved"]:
            complaints.append(
                f"{row}: {figures['moved']} arguments are read and written by different threads"
            )
        if figures["shared_bytes"] > limit:
            complaints.append(f"{row}: {figures['shared_bytes']} bytes of shared memory, limit {limit}")
        complaints += hopper.complaints(row, figures)
    return complaints


def differences(table: Table, committed: Table) -> list[str]:
    """Rows that changed, appeared or went away."""
    changed = [row for row in sorted({*table, *committed}) if table.get(row) != committed.get(row)]
    return [f"{row}: {committed.get(row)} -> {table.get(row)}" for row in changed]
