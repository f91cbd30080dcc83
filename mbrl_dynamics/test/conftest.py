import os
import sys
from pathlib import Path

import torch

FAKES = str(Path(__file__).parent / "fakes")
sys.path.insert(0, FAKES)  # shared by the tests here, and by the nodes that they start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [FAKES, os.environ.get("PYTHONPATH")]))
torch.set_num_threads(1)
