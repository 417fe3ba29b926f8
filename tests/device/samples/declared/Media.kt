// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
@file:Suppress("UNUSED_PARAMETER")

package android.media

class AudioManager {
    fun getStreamVolume(stream: Int): Int = TODO()
    fun getStreamMaxVolume(stream: Int): Int = TODO()
    fun isStreamMute(stream: Int): Boolean = TODO()

    companion object {
        const val STREAM_MUSIC = 3
    }
}
