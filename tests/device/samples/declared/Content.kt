// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
package android.content

import android.content.res.Resources

abstract class Context {
    abstract val applicationContext: Context
    abstract val resources: Resources
    abstract fun <T : Any> getSystemService(service: Class<T>): T?
}
