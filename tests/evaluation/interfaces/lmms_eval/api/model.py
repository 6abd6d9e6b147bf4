"""A model's base class: abstract in what every model must answer."""

import abc


class CacheHook:
    def __init__(self):
        self.added = []

    def add_partial(self, attribute, request, result):
        self.added.append((attribute, request, result))


class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...
