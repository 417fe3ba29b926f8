// SAMPLE, not run on a device. Type-checked against declarations made from the documentation, never run: see README.md.
package pocketrank.sample

import android.content.Context
import android.os.SystemClock
import android.view.View
import android.view.ViewGroup
import androidx.fragment.app.Fragment
import androidx.recyclerview.widget.RecyclerView
import androidx.viewpager2.widget.ViewPager2

/** One position of the feed and the item that was chosen for it. */
class Place(val itemId: Long, val pageId: String?, val position: Long)

/** A full-screen feed. The adapter only ever grows at its end: what is on screen or buffered does not move. */
class FeedAdapter(private val bind: (View, Long) -> Unit, private val create: (ViewGroup) -> View) :
    RecyclerView.Adapter<FeedAdapter.Holder>() {
    class Holder(view: View) : RecyclerView.ViewHolder(view)

    val places = ArrayList<Place>()

    fun append(place: Place) {
        places.add(place)
        notifyItemInserted(places.size - 1)
    }

    override fun getItemCount() = places.size
    override fun onCreateViewHolder(parent: ViewGroup, viewType: Int) = Holder(create(parent))
    override fun onBindViewHolder(holder: Holder, position: Int) = bind(holder.itemView, places[position].itemId)
}

/** It shows where the calls belong. Your app's own views, player and dependency injection take the place of the abstract parts. */
abstract class FeedFragment : Fragment() {
    abstract fun controller(context: Context, append: (Long, String?, Long) -> Unit): FeedController
    abstract fun createItemView(parent: ViewGroup): View
    abstract fun bindItem(view: View, itemId: Long)

    private lateinit var controller: FeedController
    private lateinit var phone: PhoneState
    private lateinit var pager: ViewPager2
    private lateinit var adapter: FeedAdapter

    /** The impression on screen. Buttons and the player's listeners write into it: `current?.like = true`. */
    var current: Impression? = null
        private set

    /** From `onViewCreated`. */
    fun onPagerCreated(context: Context, pager: ViewPager2) {
        this.pager = pager
        phone = PhoneState(context.applicationContext)
        adapter = FeedAdapter(::bindItem, ::createItemView)
        pager.orientation = ViewPager2.ORIENTATION_VERTICAL
        pager.offscreenPageLimit = 1 // one view is bound ahead, so that its video buffers
        pager.adapter = adapter
        pager.registerOnPageChangeCallback(Swipes())
        controller = controller(context) { item, page, position ->
            adapter.append(Place(item, page, position))
            if (adapter.places.size == 1) begin(0) // the pager reports no selection before the first swipe
        }
        controller.start()
    }

    private inner class Swipes : ViewPager2.OnPageChangeCallback() {
        private var at = 0.0
        private var seen = 0L

        override fun onPageSelected(position: Int) {
            finish(Ended.SWIPE, position)
            begin(position) // returning to an earlier item is a new impression, at the same position
        }

        override fun onPageScrolled(position: Int, positionOffset: Float, positionOffsetPixels: Int) {
            val now = SystemClock.elapsedRealtime()
            val to = position + positionOffset.toDouble()
            val passed = now - seen
            if (passed in 1..GESTURE_MS) current?.onScroll(Math.abs(to - at) * 1000 / passed)
            at = to
            seen = now
        }
    }

    private fun begin(index: Int) {
        current = adapter.places.getOrNull(index)?.let { Impression(it.itemId, it.pageId, it.position, phone) }
    }

    /** The main thread only makes the event and hands it over. [next] is the index of the item on screen now. */
    private fun finish(ended: Ended, next: Int) {
        val now = adapter.places.getOrNull(next) ?: return
        current?.let { controller.finished(it.finish(controller.userId, controller.sessionId, ended), now.position) }
        current = null
    }

    override fun onStart() {
        super.onStart()
        if (current == null) begin(pager.currentItem)
    }

    override fun onStop() {
        super.onStop()
        current?.onBackground()
        finish(if (activity?.isFinishing == true) Ended.EXIT else Ended.BACKGROUND, pager.currentItem)
        controller.stop()
    }

    override fun onDestroyView() {
        super.onDestroyView()
        controller.close()
    }

    private companion object {
        const val GESTURE_MS = 250L // frames further apart than that are two swipes
    }
}
