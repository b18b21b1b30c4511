"""The three names of torch that Dora looks up; saves the launcher tests 1.5 seconds for each process."""


class Tensor: ...


class distributed:
    @staticmethod
    def is_initialized() -> bool:
        return False


class cuda:
    @staticmethod
    def device_count() -> int:
        return 0
