// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
package android.view

open class View

open class ViewGroup : View()
