"""ONNX's own backend tests, taken from the installed onnx package, through the service."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.conformance import onnx_case
from tests.conformance.onnx_case import Case
from tests.conformance.served import Served
from tests.conformance.tolerance import assert_agrees

NODES = onnx_case.from_nodes()
FILES = onnx_case.from_files()


def named(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name) for case in cases]


def is_one_node(case: Case) -> bool:
    return len(case.model.graph.node) == 1


def test_onnx_has_no_operator_that_convolves_beside_those_known() -> None:
    convolve = {schema.name for schema in onnx.defs.get_all_schemas() if "conv" in schema.name.lower()}
    assert convolve == onnx_case.SERVED | onnx_case.NOT_SERVED_YET


def test_every_operator_known_has_a_case_of_its_own() -> None:
    alone = {case.model.graph.node[0].op_type for case in NODES if is_one_node(case)}
    assert alone == onnx_case.SERVED | onnx_case.NOT_SERVED_YET


@pytest.mark.parametrize(
    "case", named([each for each in [*NODES, *FILES] if is_one_node(each) and each.operators <= onnx_case.SERVED])
)
def test_a_node_gives_onnx_s_output(case: Case, served: Served) -> None:
    for (x, w, b, parameters), expected in onnx_case.convolutions(case):
        answer = served.run(x, w, b, **parameters)
        assert answer.output.dtype == expected.dtype
        assert_agrees(answer.plan, answer.output, expected, x, w, b)


@pytest.mark.parametrize("case", named([each for each in NODES if not is_one_node(each)]))
def test_a_function_written_out_gives_onnx_s_outputs_with_this_convolution_in_it(case: Case, served: Served) -> None:
    evaluator = ReferenceEvaluator(case.model, new_ops=onnx_case.operators(served))
    for inputs, expected in case.data_sets:
        outputs = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
        for output, each in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(output, each, rtol=case.rtol, atol=case.atol)
