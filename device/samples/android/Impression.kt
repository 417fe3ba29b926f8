// SAMPLE, not run on a device. Type-checked against declarations made from the documentation, never run: see README.md.
package pocketrank.sample

import android.content.Context
import android.content.res.Configuration
import android.media.AudioManager
import android.net.ConnectivityManager
import android.net.NetworkCapabilities
import android.os.PowerManager
import android.os.SystemClock
import java.util.UUID

/** The state of the phone now. Null is a value that it does not report: an invented one would mislead the model. */
class PhoneState(context: Context) {
    private val audio = context.getSystemService(AudioManager::class.java)
    private val power = context.getSystemService(PowerManager::class.java)
    private val connectivity = context.getSystemService(ConnectivityManager::class.java) // needs ACCESS_NETWORK_STATE
    private val resources = context.resources

    fun volume(): Double? {
        val most = audio?.getStreamMaxVolume(AudioManager.STREAM_MUSIC) ?: return null
        return if (most > 0) audio.getStreamVolume(AudioManager.STREAM_MUSIC).toDouble() / most else null
    }

    fun muted(): Boolean? = audio?.isStreamMute(AudioManager.STREAM_MUSIC)

    fun batterySaver(): Boolean? = power?.isPowerSaveMode

    fun orientation(): Orientation? = when (resources.configuration.orientation) {
        Configuration.ORIENTATION_PORTRAIT -> Orientation.PORTRAIT
        Configuration.ORIENTATION_LANDSCAPE -> Orientation.LANDSCAPE
        else -> null
    }

    fun network(): Network? {
        val manager = connectivity ?: return null
        val about = manager.getNetworkCapabilities(manager.activeNetwork) ?: return Network.OFFLINE
        return when {
            about.hasTransport(NetworkCapabilities.TRANSPORT_WIFI) -> Network.WIFI
            about.hasTransport(NetworkCapabilities.TRANSPORT_CELLULAR) -> Network.CELLULAR
            else -> null // a cable, or a VPN over an unknown network: the contract has no name for it
        }
    }
}

/**
 * One item on screen, from the moment it is in the middle until the next one is. The player's listeners and the buttons
 * write into it; all on the main thread.
 */
class Impression(val itemId: Long, val pageId: String?, val position: Long, private val phone: PhoneState) {
    private val startedMs = System.currentTimeMillis() // the event's time, for the cloud
    private val started = SystemClock.elapsedRealtime() // for durations, because the wall clock may be changed at any moment
    private val volumeAtStart = phone.volume()
    private var bufferingSince = 0L
    private var bufferingMs = 0L
    private var pauses = 0L
    private var seeks = 0L
    private var backgrounded = false
    private var scrollSpeed: Double? = null
    var click = false
    var like = false
    var follow = false
    var comment = false
    var share = false
    var profileEnter = false
    var dislike = false
    var playbackRate: Double? = 1.0 // of your player; null for an item without one
    var completed = false

    // ExoPlayer: Player.Listener.onIsPlayingChanged, onPositionDiscontinuity(DISCONTINUITY_REASON_SEEK), onPlaybackStateChanged.
    fun onPause() { pauses++ }
    fun onSeek() { seeks++ }
    fun onBuffering(now: Boolean) {
        val at = SystemClock.elapsedRealtime()
        if (now && bufferingSince == 0L) bufferingSince = at
        if (!now && bufferingSince != 0L) { bufferingMs += at - bufferingSince; bufferingSince = 0L }
    }

    /** The greatest speed of the swipe that ended the impression. */
    fun onScroll(screensPerSecond: Double) { scrollSpeed = maxOf(scrollSpeed ?: 0.0, screensPerSecond) }

    /** The activity was stopped while the item was shown, whether or not the user came back to it. */
    fun onBackground() { backgrounded = true }

    fun finish(userId: Long, sessionId: String, ended: Ended): FeedbackEvent {
        onBuffering(false)
        val volume = phone.volume()
        return FeedbackEvent(
            eventId = "$sessionId/${UUID.randomUUID()}",
            userId = userId,
            sessionId = sessionId,
            itemId = itemId,
            position = position,
            impressionMs = startedMs,
            watchMs = SystemClock.elapsedRealtime() - started,
            pageId = pageId,
            ended = if (completed && ended == Ended.SWIPE) Ended.COMPLETE else ended,
            click = click, like = like, follow = follow, comment = comment, share = share,
            profileEnter = profileEnter, dislike = dislike,
            volume = volume,
            volumeChange = if (volume != null && volumeAtStart != null) volume - volumeAtStart else null,
            muted = phone.muted(),
            orientation = phone.orientation(),
            playbackRate = playbackRate,
            pauses = if (playbackRate == null) null else pauses,
            seeks = if (playbackRate == null) null else seeks,
            scrollSpeed = scrollSpeed,
            network = phone.network(),
            bufferingMs = if (playbackRate == null) null else bufferingMs,
            batterySaver = phone.batterySaver(),
            backgrounded = backgrounded,
        )
    }
}
