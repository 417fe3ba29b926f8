// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import AVFoundation
import Network
import UIKit

/// The state of the phone now. Nil is a value that it does not report: an invented one would mislead the model.
@MainActor
final class PhoneState {
    private let monitor = NWPathMonitor()
    private var path: NWPath?

    init() {
        monitor.pathUpdateHandler = { [weak self] path in Task { @MainActor in self?.path = path } }
        monitor.start(queue: DispatchQueue(label: "phone-state"))
    }

    deinit { monitor.cancel() }

    /// Available once the audio session is active, as it is while a video plays.
    var volume: Double? { Double(AVAudioSession.sharedInstance().outputVolume) }

    var batterySaver: Bool? { ProcessInfo.processInfo.isLowPowerModeEnabled }

    func orientation(of window: UIWindow?) -> Orientation? {
        guard let orientation = window?.windowScene?.interfaceOrientation, orientation != .unknown else { return nil }
        return orientation.isLandscape ? .landscape : .portrait
    }

    var network: Network? {
        guard let path else { return nil } // not reported yet
        if path.status != .satisfied { return .offline }
        if path.usesInterfaceType(.wifi) { return .wifi }
        return path.usesInterfaceType(.cellular) ? .cellular : nil // a cable: the contract has no name for it
    }
}

/// One item on screen, from the moment it is in the middle until the next one is. The player's observers and the buttons
/// write into it; all on the main actor.
@MainActor
final class Impression {
    let place: Place
    private let phone: PhoneState
    private let startedMs = Int64(Date().timeIntervalSince1970 * 1000) // the event's time, for the cloud
    private let started = ContinuousClock.now // for durations, because the wall clock may be changed at any moment
    private let volumeAtStart: Double?
    private var bufferingSince: ContinuousClock.Instant?
    private var buffering = Duration.zero
    var pauses: Int64 = 0 // AVPlayer.timeControlStatus became .paused by the user
    var seeks: Int64 = 0 // AVPlayerItem.timeJumpedNotification that the user caused
    var click = false, like = false, follow = false, comment = false, share = false, profileEnter = false, dislike = false
    var playbackRate: Double? = 1 // AVPlayer.defaultRate; nil for an item without a player
    var muted: Bool? // AVPlayer.isMuted: the app's own; iOS does not report the ring switch
    var completed = false
    var backgrounded = false
    private var scrollSpeed: Double?

    init(_ place: Place, phone: PhoneState) {
        self.place = place
        self.phone = phone
        volumeAtStart = phone.volume
    }

    /// AVPlayer.timeControlStatus is, or is no longer, .waitingToPlayAtSpecifiedRate.
    func onBuffering(_ now: Bool) {
        if now {
            bufferingSince = bufferingSince ?? .now
        } else if let since = bufferingSince {
            buffering += since.duration(to: .now)
            bufferingSince = nil
        }
    }

    /// The greatest speed of the swipe that ended the impression.
    func onScroll(screensPerSecond: Double) { scrollSpeed = max(scrollSpeed ?? 0, screensPerSecond) }

    func finish(userId: Int64, sessionId: String, ended: Ended, window: UIWindow?) -> FeedbackEvent {
        onBuffering(false)
        var event = FeedbackEvent(
            userId: userId, sessionId: sessionId, itemId: place.itemId, position: place.position, impressionMs: startedMs,
            watchMs: milliseconds(started.duration(to: .now))
        )
        event.pageId = place.pageId
        event.ended = completed && ended == .swipe ? .complete : ended
        (event.click, event.like, event.follow, event.comment) = (click, like, follow, comment)
        (event.share, event.profileEnter, event.dislike) = (share, profileEnter, dislike)
        event.volume = phone.volume
        if let now = phone.volume, let before = volumeAtStart { event.volumeChange = now - before }
        event.muted = muted
        event.orientation = phone.orientation(of: window)
        event.scrollSpeed = scrollSpeed
        event.network = phone.network
        event.batterySaver = phone.batterySaver
        event.backgrounded = backgrounded
        if let playbackRate {
            event.playbackRate = playbackRate
            event.pauses = pauses
            event.seeks = seeks
            event.bufferingMs = milliseconds(buffering)
        }
        return event
    }

    private func milliseconds(_ duration: Duration) -> Int64 {
        let (seconds, attoseconds) = duration.components
        return seconds * 1000 + attoseconds / 1_000_000_000_000_000
    }
}
