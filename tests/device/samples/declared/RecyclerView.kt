// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
@file:Suppress("UNUSED_PARAMETER")

package androidx.recyclerview.widget

import android.view.View
import android.view.ViewGroup

class RecyclerView {
    abstract class ViewHolder(@JvmField val itemView: View)

    abstract class Adapter<VH : ViewHolder> {
        abstract fun getItemCount(): Int
        abstract fun onCreateViewHolder(parent: ViewGroup, viewType: Int): VH
        abstract fun onBindViewHolder(holder: VH, position: Int)
        fun notifyItemInserted(position: Int): Unit = TODO()
    }
}
