"""A set of 64-bit hashes that takes 16 to 32 bytes per entry; a Python set takes about 100."""

from array import array


class HashSet:
    """Open addressing with linear probing; 0 marks an empty slot. Two of 3.35M texts share a hash with probability 3e-7."""

    def __init__(self) -> None:
        self._table = array("Q", [0]) * (1 << 10)
        self._count = 0

    def add(self, value: int) -> bool:
        """Adds a hash; returns True if it is new."""
        if self._count * 2 >= len(self._table):
            self._grow()
        return self._insert(value or 1)

    def _insert(self, value: int) -> bool:
        table, mask = self._table, len(self._table) - 1
        slot = value & mask
        while (entry := table[slot]) != value:
            if not entry:
                table[slot] = value
                self._count += 1
                return True
            slot = (slot + 1) & mask
        return False

    def _grow(self) -> None:
        entries, self._table, self._count = self._table, array("Q", [0]) * (2 * len(self._table)), 0
        for value in entries:
            if value:
                self._insert(value)
