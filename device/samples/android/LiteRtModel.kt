// SAMPLE, not run on a device. Type-checked against declarations made from the documentation, never run: see README.md.
// Needs com.google.ai.edge.litert:litert (the Interpreter API).
package pocketrank.sample

import java.io.File
import java.nio.FloatBuffer
import java.nio.IntBuffer
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

/**
 * A .tflite file of a bundle: one signature per stage and size, `n30` and `watch_n30`, `event_t1` and `event_t50`. They share the
 * weights and one interpreter, which is not thread-safe: open and use it on the session's executor only.
 */
class LiteRtModel(file: File) : Model, AutoCloseable {
    private class Signature(val key: String, val inputs: Map<String, List<Int>>, val outputs: Map<String, Output>)

    private class Output(val own: String, val shape: IntArray, val isInt: Boolean)

    // One thread: a model of some 100 kB finishes before a second thread has started, and the video decoder needs the cores.
    private val interpreter = try {
        Interpreter(file, Interpreter.Options().setNumThreads(1).setUseXNNPACK(true))
    } catch (e: IllegalArgumentException) {
        throw ModelException("$file is no LiteRT model", e)
    }
    private val signatures: Map<Stage, Map<Int, Signature>> = Stage.entries.associateWith { stage ->
        val prefix = when (stage) { Stage.WHOLE -> "n"; Stage.EVENT -> "event_t"; else -> "${stage.wire}_n" }
        interpreter.signatureKeys
            .mapNotNull { key -> key.removePrefix(prefix).takeIf { it != key }?.toIntOrNull()?.let { size -> size to signature(key, stage) } }
            .toMap().toSortedMap()
    }.filterValues { it.isNotEmpty() }

    override val sizes = signatures.mapValues { (_, bySize) -> bySize.keys.toList() }
    override val fixedEvents = true
    override val eventStateWidth = signatures[Stage.WATCH]?.values?.first()?.inputs?.get("event_state")?.last() ?: 0

    init {
        // The first run of a signature allocates its tensors. That must not happen at a swipe.
        for ((stage, bySize) in signatures) for ((size, signature) in bySize) run(stage, size, zeros(signature))
    }

    private fun signature(key: String, stage: Stage): Signature {
        val own = interpreter.getSignatureOutputs(key)
        // Converters may give a single output any name.
        val outputs = own.associate { name ->
            val tensor = interpreter.getOutputTensorFromSignature(name, key)
            val called = if (own.size > 1) name else when (stage) { Stage.PAGE -> "page_state"; Stage.EVENT -> "event_state"; else -> "scores" }
            called to Output(name, tensor.shape(), tensor.dataType() == DataType.INT32)
        }
        val inputs = interpreter.getSignatureInputs(key).associateWith { interpreter.getInputTensorFromSignature(it, key).shape().toList() }
        return Signature(key, inputs, outputs)
    }

    override fun run(stage: Stage, size: Int, inputs: Map<String, Tensor>): Map<String, Tensor> {
        val signature = signatures[stage]?.get(size) ?: throw ModelException("no ${stage.wire} of $size")
        val given = HashMap<String, Any>()
        for ((name, shape) in signature.inputs) {
            val tensor = inputs[name] ?: throw ModelException("${signature.key}: no input $name")
            if (tensor.shape.toList() != shape) throw ModelException("${signature.key}: $name is ${tensor.shape.toList()}, not $shape")
            given[name] = when (tensor) {
                is Tensor.Floats -> FloatBuffer.wrap(tensor.values)
                is Tensor.Ints -> IntBuffer.wrap(tensor.values)
            }
        }
        val answers = signature.outputs.mapValues { (_, output) ->
            val count = output.shape.fold(1) { all, d -> all * d }
            if (output.isInt) Tensor.Ints(output.shape, IntArray(count)) else Tensor.Floats(output.shape, FloatArray(count))
        }
        val buffers = HashMap<String, Any>()
        for ((name, output) in signature.outputs) {
            buffers[output.own] = when (val answer = answers.getValue(name)) {
                is Tensor.Floats -> FloatBuffer.wrap(answer.values)
                is Tensor.Ints -> IntBuffer.wrap(answer.values)
            }
        }
        try {
            interpreter.runSignature(given, buffers, signature.key)
        } catch (e: IllegalArgumentException) {
            throw ModelException("${signature.key} failed", e)
        } catch (e: IllegalStateException) {
            throw ModelException("${signature.key} failed", e)
        }
        return answers
    }

    private fun zeros(signature: Signature) = signature.inputs.mapValues { (name, shape) ->
        val count = shape.fold(1) { all, d -> all * d }
        if (name.endsWith("_category") || name.startsWith("chosen")) Tensor.Ints(shape.toIntArray(), IntArray(count))
        else Tensor.Floats(shape.toIntArray(), FloatArray(count))
    }

    override fun close() = interpreter.close()
}
