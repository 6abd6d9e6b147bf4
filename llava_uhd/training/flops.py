"""Former place of `llava_uhd.flops`, kept for code that imports from here."""

from ..flops import PartFlops as PartFlops
from ..flops import language_flops as language_flops
from ..flops import sample_flops as sample_flops
from ..flops import standard_shape as standard_shape
from ..flops import tower_flops as tower_flops
from ..flops import training_flops as training_flops
