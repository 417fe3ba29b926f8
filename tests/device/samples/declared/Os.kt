// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
@file:Suppress("UNUSED_PARAMETER")

package android.os

class Looper {
    companion object {
        @JvmStatic fun getMainLooper(): Looper = TODO()
    }
}

class Handler(looper: Looper) {
    fun post(work: Runnable): Boolean = TODO()
    fun postDelayed(work: Runnable, ms: Long): Boolean = TODO()
}

class PowerManager {
    val isPowerSaveMode: Boolean get() = TODO()
}

object SystemClock {
    @JvmStatic fun elapsedRealtime(): Long = TODO()
}
