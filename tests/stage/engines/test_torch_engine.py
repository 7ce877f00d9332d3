"""The torch engine on whole models, cut and uncut, and when something is wrong."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from contract.errors import EngineError
from planner.build import PlanRequest, build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.partition import Method
from planner.sample_inputs import sample_images
from shards.reader import read_shard
from stage.engine import load_engine
from tests.tiny import make_tiny_plan, tiny_answer
