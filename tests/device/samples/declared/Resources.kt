// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
package android.content.res

class Configuration {
    @JvmField val orientation: Int = 0

    companion object {
        const val ORIENTATION_PORTRAIT = 1
        const val ORIENTATION_LANDSCAPE = 2
    }
}

class Resources {
    val configuration: Configuration get() = TODO()
}
