// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
@file:Suppress("UNUSED_PARAMETER")

package org.tensorflow.lite

import java.io.File

enum class DataType { FLOAT32, INT32 }

interface Tensor {
    fun shape(): IntArray
    fun dataType(): DataType
}

class Interpreter(file: File, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(threads: Int): Options = TODO()
        fun setUseXNNPACK(use: Boolean): Options = TODO()
    }

    val signatureKeys: Array<String> get() = TODO()
    fun getSignatureInputs(key: String): Array<String> = TODO()
    fun getSignatureOutputs(key: String): Array<String> = TODO()
    fun getInputTensorFromSignature(name: String, key: String): Tensor = TODO()
    fun getOutputTensorFromSignature(name: String, key: String): Tensor = TODO()
    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, key: String): Unit = TODO()
    override fun close(): Unit = TODO()
}
