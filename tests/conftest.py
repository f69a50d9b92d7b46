import os
import sys
from pathlib import Path

# Before TensorFlow is imported by any test; its messages about absent GPUs are not what a test prints.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
# Its tests run inside the workers that tests/test_engines.py launches.
collect_ignore = ["contract"]
