// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
package androidx.fragment.app

class FragmentActivity {
    val isFinishing: Boolean get() = TODO()
}

open class Fragment {
    val activity: FragmentActivity? get() = TODO()
    open fun onStart(): Unit = TODO()
    open fun onStop(): Unit = TODO()
    open fun onDestroyView(): Unit = TODO()
}
