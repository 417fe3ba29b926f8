// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
@file:Suppress("UNUSED_PARAMETER")

package androidx.viewpager2.widget

import androidx.recyclerview.widget.RecyclerView

class ViewPager2 {
    abstract class OnPageChangeCallback {
        open fun onPageSelected(position: Int): Unit = TODO()
        open fun onPageScrolled(position: Int, positionOffset: Float, positionOffsetPixels: Int): Unit = TODO()
    }

    var orientation: Int = 0
    var offscreenPageLimit: Int = 0
    var adapter: RecyclerView.Adapter<*>? = null
    val currentItem: Int get() = TODO()
    fun registerOnPageChangeCallback(callback: OnPageChangeCallback): Unit = TODO()

    companion object {
        const val ORIENTATION_VERTICAL = 1
    }
}
