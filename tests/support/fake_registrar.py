"""Registration of host memory that needs no GPU."""

from hybridmoe.errors import DeviceError

__all__ = ["FakeRegistrar"]


class FakeRegistrar:
    """`Registrar` that notes what is registered; refuses pages twice, and all after some calls."""

    def __init__(self, most_calls: int = 1 << 30, rate: float | None = 1e9) -> None:
        """rate: of copies, None = wrong ones."""
        self.rate = rate
        self.spans: dict[int, int] = {}  # first address -> end
        self.num_calls, self._most_calls = 0, most_calls

    def register(self, address: int, num_bytes: int) -> None:
        self.num_calls += 1
        if self.num_calls > self._most_calls:
            raise DeviceError("no more memory may be locked")
        end = address + num_bytes
        assert address % 4096 == num_bytes % 4096 == 0, (address, num_bytes)
        assert all(end <= a or b <= address for a, b in self.spans.items()), "registered twice"
        self.spans[address] = end

    def unregister(self, address: int) -> None:
        del self.spans[address]

    def copy_rate(self, address: int, num_bytes: int) -> float | None:
        assert self.spans[address] == address + num_bytes
        return self.rate
