"""Splits a converted LiteRT file into a signature for each stage, and closes the loop of a search.

A converter's file has one signature for all stages side by side (`graphs.Stages`). Here its operations are distributed to
subgraphs that share the file's weights, in LiteRT's own schema. Names of tensors and the empty buffers of tensors without data
are removed: no runtime reads them, and they are a fifth of a small model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

from pocketrank.device.contract import Stage
from pocketrank.device.runtimes import OUTPUT_NAMES, stage_inputs
from pocketrank.export.cut import Operations
from pocketrank.export.graphs import FIRST, GOING, LINKS, NEXT, Graph, stage_output

__all__ = ["cut_stages"]


def cut_stages(data: bytes, graph: Graph, wanted: Mapping[str, tuple[str, Stage]]) -> bytes:
    """Return the file `data` with the signatures `wanted`: name → the signature that it is cut from, and its stage."""
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data)
    for part in model.subgraphs:
        for operation in part.operators:
            operation.inputs, operation.outputs = ([int(i) for i in side] for side in (operation.inputs, operation.outputs))
    sources = {s.signatureKey.decode(): (model.subgraphs[s.subgraphIndex], s) for s in model.signatureDefs}
    model.subgraphs, model.signatureDefs = [], []
    for name, (source, stage) in wanted.items():
        _Source(schema, model, *sources[source]).cut(graph, stage, name)
    _strip(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Part:
    """New subgraph of tensors and operations of `source`. `links` maps a tensor that is passed on to the one used instead."""

    def __init__(self, schema: Any, source: Any, links: Mapping[int, int]) -> None:
        self.graph, self.links, self._source = schema.SubGraphT(), links, source
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self._at: dict[int, int] = {}

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._at

    def add(self, tensor: int) -> int:
        """Append a copy of a tensor of the source and return its index here."""
        self.graph.tensors.append(copy(self._source.tensors[tensor]))
        return len(self.graph.tensors) - 1

    def at(self, tensors: Iterable[int]) -> list[int]:
        """Return the indices here of tensors of the source, which are added if they are new."""
        found = []
        for tensor in tensors:
            tensor = self.links.get(tensor, tensor)
            if tensor not in self._at:
                self._at[tensor] = self.add(tensor)
            found.append(self._at[tensor])
        return found

    def take(self, operations: Iterable[int]) -> None:
        """Append copies of operations of the source."""
        for i in operations:
            operation = copy(self._source.operators[i])
            places = iter(self.at(_present(operation.inputs)))
            operation.inputs = [next(places) if x >= 0 else x for x in operation.inputs]
            operation.outputs = self.at(operation.outputs)
            self.graph.operators.append(operation)


class _Source:
    """Subgraph and signature with all stages side by side."""

    def __init__(self, schema: Any, model: Any, source: Any, signature: Any) -> None:
        self._schema, self._model, self._source = schema, model, source
        self._inputs, self._outputs = (
            {t.name.decode(): int(t.tensorIndex) for t in side} for side in (signature.inputs, signature.outputs)
        )

    def cut(self, graph: Graph, stage: Stage, name: str) -> None:
        """Append a stage to the model, under the signature `name`."""
        inputs, outputs = self._inputs, self._outputs
        given = {n: inputs[n] for n in stage_inputs(graph.form, stage) if n in inputs}
        wanted = {n: outputs[stage_output(stage, n)] for n in OUTPUT_NAMES[stage]}
        links = {inputs[n]: outputs[output] for n, output in LINKS.items() if n in inputs and n not in given}
        operations = Operations([(_present(o.inputs), o.outputs) for o in self._source.operators], links)
        part = _Part(self._schema, self._source, links)
        index = len(self._model.subgraphs)
        self._model.subgraphs.append(part.graph)
        if stage == "search":
            assert graph.modules.search is not None
            self._search(part, operations, given.values(), wanted.values(), graph.modules.search.state)
        else:
            part.take(operations.needed(wanted.values(), given.values()))
        used = {n: i for n, i in given.items() if i in part}  # a runtime allocates no memory for an unused input
        part.graph.inputs, part.graph.outputs = part.at(used.values()), part.at(wanted.values())
        signature = self._schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = name, index
        signature.inputs, signature.outputs = self._named(part, used), self._named(part, wanted)
        self._model.signatureDefs.append(signature)

    def _search(
        self, part: _Part, operations: Operations[int], given: Iterable[int], wanted: Iterable[int], names: Iterable[str]
    ) -> None:
        """Fill `part` with a search, and append the condition and the body of its loop to the model."""
        inputs, outputs = self._inputs, self._outputs
        # State and flag, each before the loop and after one more round.
        state = {inputs[n]: (outputs[FIRST + n], outputs[NEXT + n]) for n in names}
        first, after = outputs[FIRST + GOING], outputs[NEXT + GOING]
        loop = operations.loop(list(wanted), list(given), state, (first, after))
        captured = [i for i in loop.captured if self._model.buffers[self._source.tensors[i].buffer].data is None]
        # Condition and body are subgraphs with the same inputs: flag, state, captured values.
        condition, body = (_Part(self._schema, self._source, part.links) for _ in range(2))
        condition.graph.inputs = condition.at((first, *state, *captured))
        condition.graph.outputs = condition.graph.inputs[:1]
        body.graph.inputs = [body.add(first), *body.at((*state, *captured))]
        body.take(loop.body)
        body.graph.outputs = body.at((after, *(i for _, i in state.values()), *captured))
        options = self._schema.WhileOptionsT()
        options.condSubgraphIndex = len(self._model.subgraphs)
        options.bodySubgraphIndex = options.condSubgraphIndex + 1
        self._model.subgraphs += [condition.graph, body.graph]
        # The loop itself, between the operations before and after it.
        part.take(loop.before)
        while_operator = self._schema.OperatorT()
        while_operator.opcodeIndex = self._opcode(self._schema.BuiltinOperator.WHILE)
        while_operator.builtinOptionsType, while_operator.builtinOptions = self._schema.BuiltinOptions.WhileOptions, options
        while_operator.inputs = part.at((first, *(i for i, _ in state.values()), *captured))
        while_operator.outputs = [part.add(first), *part.at(state), *(part.add(i) for i in captured)]
        part.graph.operators.append(while_operator)
        part.take(loop.after)

    def _opcode(self, builtin: int) -> int:
        code = self._schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _named(self, part: _Part, tensors: Mapping[str, int]) -> list[Any]:
        named = []
        for name, i in zip(tensors, part.at(tensors.values()), strict=True):
            entry = self._schema.TensorMapT()
            entry.name, entry.tensorIndex = name, i
            named.append(entry)
        return named


def _present(inputs: Iterable[int]) -> list[int]:
    """Return the inputs of an operation without optional ones that are absent."""
    return [i for i in inputs if i >= 0]


def _strip(model: Any) -> None:
    """Remove names, empty quantisation parameters and duplicate buffers."""
    kept: dict[bytes | None, int] = {None: 0}  # buffer 0 is that of tensors without data
    buffers = [model.buffers[0]]
    for entry in (*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or [])):
        data = model.buffers[entry.buffer].data
        key = None if data is None else bytes(data)
        if key not in kept:
            kept[key] = len(buffers)
            buffers.append(model.buffers[entry.buffer])
        entry.buffer = kept[key]
    model.buffers = buffers
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = None
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
